from django.db import models


class Tag(models.Model):
    name = models.CharField(max_length=20)


class Order(models.Model):
    customer = models.EmailField()
    status = models.CharField(max_length=20, default="new")
    total = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    details = models.JSONField(default=dict)
    tags = models.ManyToManyField(Tag)


class Line(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE)
    name = models.CharField(max_length=50)
