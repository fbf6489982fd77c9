from celery import shared_task

from cdc_tasks.django.task import TransactionalTask


@shared_task
def send_confirmation(order_id):
    """The page of the docs has it with a mail."""


@shared_task(base=TransactionalTask)
def send_receipt(order_id):
    """It is sent when the transaction commits."""
