from django.db import migrations, models
from django.db.models import Value

from stock.ledger import note_changes


class Migration(migrations.Migration):
    dependencies = [("stock", "0005_alter_columns")]
    operations = [
        migrations.CreateModel(
            name="Shelf",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        primary_key=True, serialize=False, auto_created=True, verbose_name="ID"
                    ),
                ),
                ("version", models.IntegerField(db_default=Value(0))),
            ],
        ),
        migrations.RunPython(lambda _, editor: note_changes(editor, "stock_shelf")),
    ]
