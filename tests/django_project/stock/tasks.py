from celery import shared_task


@shared_task(name="stock.seen")
def seen(table, event, number, version):
    """Nobody runs it: the test reads the queue."""


@shared_task(name="stock.priced")
def priced(change):
    """The same."""
