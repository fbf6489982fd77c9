from django.db import migrations, models
from django.db.models import Value


class Migration(migrations.Migration):
    dependencies = [("stock", "0001_initial")]
    operations = [
        migrations.AddField("Item", "colour", models.CharField(max_length=20, db_default=Value("red")))
    ]
