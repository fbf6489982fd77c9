from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("stock", "0002_add_column")]
    operations = [migrations.RenameField("Item", "note", "remark")]
