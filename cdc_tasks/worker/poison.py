"""Tasks that were given back because their worker was gone, and that may be why it is gone.

Of a message that comes for the second time nobody can say whether it killed its worker, or was at the wrong place at
the wrong time. So it is noted when its task begins, and struck off when that ends, in whatever way. Who has begun so
often and never ended is given up.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from cdc_tasks import cache
from cdc_tasks.errors import CDCError
from cdc_tasks.retry import MOST_KILLS, MOST_LOSSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.app.task import Context

__all__ = ["KILLS", "KilledWorkersError", "watched"]

log = structlog.get_logger()

KILLS = "cdc_kills"  # the message header that counts the worker processes that died with this task
_KEPT = 24 * 3600  # seconds


class KilledWorkersError(CDCError):
    """Each worker that had this task died. Memory? A crash in a C extension? It is not tried any more."""


@contextmanager
def watched(request: Context) -> Iterator[None]:
    """Note that a task which was delivered before begins and ends; raises KilledWorkersError and CacheAway."""
    if int((request.headers or {}).get(KILLS, 0)) >= MOST_KILLS:
        raise KilledWorkersError
    if request.called_directly or not (request.delivery_info or {}).get("redelivered"):
        yield
        return
    key = f"cdc:suspect:{request.id}"
    with cache.errors_translated():
        begun = int(cache.client().incr(key))
        cache.client().expire(key, _KEPT)
    try:
        if begun > MOST_LOSSES:
            raise KilledWorkersError
        yield
    finally:
        _strike_off(key)


def _strike_off(key: str) -> None:
    try:
        with cache.errors_translated():
            cache.client().delete(key)
    except cache.CacheAway as away:  # it is forgotten anyway, a day later
        log.warning("suspect not struck off", key=key, error=away.message)
