from django.db import models
from django.db.models import Value


class Ledger(models.Model):
    """What triggers have seen, in the transaction that did it: the listener has to tell the same."""

    table_name = models.CharField(max_length=50)
    event = models.CharField(max_length=10)
    row_id = models.BigIntegerField()
    version = models.IntegerField()

    class Meta:
        db_table = "ledger"


class Article(models.Model):
    """As the last migration leaves it."""

    name = models.TextField(db_default=Value(""))
    remark = models.CharField(max_length=20, db_default=Value(""))
    colour = models.CharField(max_length=20, db_default=Value("red"))
    count = models.BigIntegerField(db_default=Value(0))
    price = models.CharField(max_length=20, db_default=Value("0"))
    version = models.IntegerField(db_default=Value(0))
