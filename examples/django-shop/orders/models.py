"""What the shop knows of an order."""

from django.db import models


class Order(models.Model):
    """An order of one thing."""

    customer = models.EmailField()
    item = models.CharField(max_length=100)
    status = models.CharField(
        max_length=10, default="new", choices=[(each, each) for each in ("new", "paid", "shipped")]
    )

    def __str__(self) -> str:
        return f"order {self.pk}: {self.item}"
