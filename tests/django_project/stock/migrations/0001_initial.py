from django.db import migrations, models
from django.db.models import Value

from stock.ledger import note_changes

_ID = models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            name="Ledger",
            fields=[
                ("id", _ID),
                ("table_name", models.CharField(max_length=50)),
                ("event", models.CharField(max_length=10)),
                ("row_id", models.BigIntegerField()),
                ("version", models.IntegerField()),
            ],
            options={"db_table": "ledger"},
        ),
        migrations.CreateModel(
            name="Item",
            fields=[
                ("id", _ID),
                ("name", models.CharField(max_length=20, db_default=Value(""))),
                ("note", models.CharField(max_length=20, db_default=Value(""))),
                ("old", models.IntegerField(db_default=Value(0))),
                ("count", models.IntegerField(db_default=Value(0))),
                ("price", models.IntegerField(db_default=Value(0))),
                ("version", models.IntegerField(db_default=Value(0))),
            ],
        ),
        migrations.RunPython(lambda _, editor: note_changes(editor, "stock_item"), elidable=False),
    ]
