"""What the shop does about its changes."""

from __future__ import annotations

import logging

from celery import shared_task

__all__ = ["confirm", "send"]

log = logging.getLogger(__name__)


@shared_task(name="shop.confirm")
def confirm(order: int) -> None:
    log.info("order %s is confirmed", order)


@shared_task(name="shop.send")
def send(order: int) -> None:
    log.info("order %s is sent", order)
