from celery import shared_task


@shared_task
def index(change):
    """Would bring a search index up to date."""
