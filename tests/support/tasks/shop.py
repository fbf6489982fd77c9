"""Another app with `cdc_tasks.install`: its own task base class, a queue that Celery creates, its own settings."""

from __future__ import annotations

import gc
import os
from typing import Any

import redis
from celery import Celery, Task, shared_task, signals

from cdc_tasks import TryAgain, install


class ShopTask(Task):  # type: ignore[type-arg]  # generic in Celery's stubs only
    """Notes each call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _notes().hincrby("shop called", self.name, 1)
        return super().__call__(*args, **kwargs)


app = Celery("shop", broker=os.environ["SHOP_BROKER"], task_cls=ShopTask)
app.conf.task_default_queue = "shop"
if os.environ.get("SHOP_IS_LATE"):
    app.finalize()

    @app.task(name="shop.early")
    def early() -> None: ...


if prefix := os.environ.get("SHOP_PREFIX"):
    app.conf.broker_transport_options = {"global_keyprefix": prefix}
if not os.environ.get("SHOP_IS_STOCK"):
    install(app)


def _notes() -> redis.Redis:
    return redis.Redis.from_url(os.environ["SHOP_NOTES"])


@app.task(name="shop.kills", default_retry_delay=1)
def kills() -> None:
    """Kill the process of the pool at the first attempt."""
    if _notes().hincrby("shop tries", "kills", 1) == 1:
        os._exit(1)


@shared_task(name="shop.waits", acks_late=False)
def waits() -> None:
    """Succeed at the second attempt."""
    if _notes().hincrby("shop tries", "waits", 1) == 1:
        raise TryAgain("not yet", after=0.1)


@app.task(name="shop.counts")
def counts(of: str = "process of the pool", **_: Any) -> None:
    """Record how many objects the garbage collector of this process ignores."""
    _notes().hset("shop counts", of, gc.get_freeze_count())


if os.environ.get("SHOP_COUNTS"):

    @signals.worker_shutdown.connect
    def _count_of_main_process(**_: Any) -> None:
        counts.run("main process")


@app.task(name="shop.fails")
def fails() -> None:
    raise ValueError("always")


@app.task(name="shop.notes")
def notes(name: str) -> None:
    _notes().hincrby("shop notes", name, 1)
