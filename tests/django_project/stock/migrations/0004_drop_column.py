from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("stock", "0003_rename_column")]
    operations = [migrations.RemoveField("Item", "old")]
