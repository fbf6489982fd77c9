"""What is done with events: each one is posted to a webhook."""

import json
import os
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from celery import shared_task
from celery.utils.log import get_task_logger

from cdc_tasks import TryAgain

log = get_task_logger(__name__)

_RECEIVER = os.environ.get("RECEIVER_URL", "http://127.0.0.1:8000")


@shared_task(bind=True)
def post_event(self: Any, event: str, data: dict[str, Any]) -> None:
    """Post an event; try again while the receiver is away. What the receiver refuses is a dead letter."""
    request = Request(  # noqa: S310 - the address is a setting
        _RECEIVER,
        data=json.dumps({"event": event, **data}).encode(),
        # The same at each try: the receiver drops what it has already.
        headers={"Content-Type": "application/json", "Idempotency-Key": self.request.id},
    )
    try:
        urlopen(request, timeout=10).close()  # noqa: S310
    except HTTPError as error:
        if error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        raise TryAgain(f"The receiver answered {error.code}.") from error
    except OSError as error:
        raise TryAgain("The receiver does not answer.") from error
    log.info("%s of order %s is delivered", event, data["order"])
