from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("stock", "0008_rename_table")]
    operations = [
        migrations.RunSQL(
            "UPDATE stock_shelf SET version = version + 1",
            reverse_sql=migrations.RunSQL.noop,
        ),
        migrations.DeleteModel("Shelf"),
    ]
