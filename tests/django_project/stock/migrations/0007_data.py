from typing import Any

from django.db import migrations
from django.db.models import F


def fill(apps: Any, _: Any) -> None:
    items = apps.get_model("stock", "Item")
    items.objects.update(remark="migrated", version=F("version") + 1000)
    items.objects.bulk_create([items(name=f"from the migration {number}") for number in range(50)])


class Migration(migrations.Migration):
    dependencies = [("stock", "0006_new_table")]
    operations = [migrations.RunPython(fill)]
