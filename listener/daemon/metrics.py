"""The pages for Prometheus and probes, if CDC_METRICS_ADDRESS is set; loaded by `run` alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any, Final

from celery import Celery

from cdc_tasks.environment import TWINS, is_set
from cdc_tasks.extras import check_extra
from cdc_tasks.routing.router import BinlogRouter, Route
from listener.daemon.application import cache_url, celery_app
from listener.daemon.database_url import DatabaseType
from listener.daemon.loop import Listener
from listener.daemon.samples import (
    RabbitQueues,
    RedisQueues,
    StoreReader,
    WorkerReader,
    queues_of,
    source_reader,
)
from listener.daemon.settings import ListenerSettings, split_address
from listener.daemon.wiring import checkpoint_store, is_redis
from listener.metrics.meter import Meter
from listener.metrics.queue_ages import QueueAges
from listener.metrics.sampler import Sampler
from listener.metrics.samples import QueueSample
from listener.publish.redis.connection import RedisConnection

__all__ = ["SINCE_2000", "metrics_of"]

SINCE_2000: Final = (
    946_684_800.0  # seconds between 1970, from which MySQL counts, and 2000, from which PostgreSQL does
)


def metrics_of(
    settings: ListenerSettings, router: BinlogRouter, listener: Listener
) -> AbstractContextManager[Any]:
    """Return a context manager that serves the pages while it is entered; the port is bound now.

    Raise MetricsAddressError, MissingExtraError.
    """
    meter = listener.meter
    if settings.cdc_metrics_address is None or meter is None:
        return nullcontext()
    check_extra("metrics")
    from prometheus_client import CollectorRegistry, ProcessCollector

    from listener.metrics.collector import Known, Limits, ListenerCollector
    from listener.metrics.server import MetricsServer

    app = celery_app(settings)
    on_redis = is_redis(app)
    store = StoreReader(checkpoint_store(settings), settings.cdc_name, is_broker=on_redis)
    workers = WorkerReader(_of_workers(settings, app, on_redis=on_redis))
    stored = Sampler("store", store, store.close)
    read_source, close_source = source_reader(
        settings, lambda: None if (last := stored.last) is None else last.position
    )
    known = Known(
        meter=meter,
        monitor=listener.monitor,
        retries=listener.retries,
        source=Sampler("database", read_source, close_source),
        store=stored,
        queues=_queues(settings, app, router.routes, meter, on_redis=on_redis),
        workers=Sampler("workers", workers, workers.close),
        store_is_broker=on_redis,
        recent=listener.recent,
    )
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(
        ListenerCollector(
            known,
            router.routes,
            name=settings.cdc_name,
            info=(metadata.version("cdc-tasks"), settings.database_type.value, _driver(app)),
            limits=Limits(lag_bytes=settings.cdc_lag_alarm, queue_seconds=settings.cdc_queue_alarm),
        )
    )
    return MetricsServer(*split_address(settings.cdc_metrics_address), known, registry)


def _driver(app: Celery) -> str:
    with app.connection_for_write() as connection:
        return str(connection.transport.driver_type)


def _queues(
    settings: ListenerSettings, app: Celery, routes: tuple[Route, ...], meter: Meter, *, on_redis: bool
) -> Sampler[QueueSample]:
    queues = queues_of(app, routes)
    ages = QueueAges(0.0 if settings.database_type is DatabaseType.MYSQL else SINCE_2000)
    reader = RedisQueues(app, queues, ages) if on_redis else RabbitQueues(app, queues, ages, meter)
    return Sampler("queues", reader, reader.close)


def _of_workers(settings: ListenerSettings, app: Celery, *, on_redis: bool) -> RedisConnection:
    """Return a connection to the Redis with the workers' counters, as `cdc_tasks.cache` finds it."""
    is_in_broker = settings.cdc_app is not None and not is_set(TWINS["CACHE_URL"]) and on_redis
    return RedisConnection.of_broker(app) if is_in_broker else RedisConnection.of_cache(cache_url(settings))
