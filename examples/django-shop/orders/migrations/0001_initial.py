"""The table, with old values in PostgreSQL's log."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Create the table of orders."""

    initial = True
    operations = [
        migrations.CreateModel(
            "Order",
            [
                (
                    "id",
                    models.BigAutoField(
                        primary_key=True, auto_created=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("customer", models.EmailField(max_length=254)),
                ("item", models.CharField(max_length=100)),
                (
                    "status",
                    models.CharField(
                        choices=[("new", "new"), ("paid", "paid"), ("shipped", "shipped")],
                        default="new",
                        max_length=10,
                    ),
                ),
            ],
        ),
        # Without it PostgreSQL does not log what a row was before an UPDATE.
        migrations.RunSQL(
            "ALTER TABLE orders_order REPLICA IDENTITY FULL",
            "ALTER TABLE orders_order REPLICA IDENTITY DEFAULT",
        ),
    ]
