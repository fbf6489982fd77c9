from celery import shared_task


@shared_task
def send_confirmation(order_id):
    """The page of the docs has it with a mail."""
