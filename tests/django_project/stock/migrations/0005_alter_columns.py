from django.db import migrations, models
from django.db.models import Value


class Migration(migrations.Migration):
    dependencies = [("stock", "0004_drop_column")]
    operations = [
        migrations.AlterField("Item", "count", models.BigIntegerField(db_default=Value(0))),
        migrations.AlterField("Item", "name", models.TextField(db_default=Value(""))),
        migrations.AlterField("Item", "price", models.CharField(max_length=20, db_default=Value("0"))),
    ]
