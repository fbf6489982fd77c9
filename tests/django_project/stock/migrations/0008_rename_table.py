from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("stock", "0007_data")]
    operations = [migrations.RenameModel("Item", "Article")]
