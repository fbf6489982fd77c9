"""Logs are events, one structlog line each, as text or JSON, without secrets."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import WatchedFileHandler
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor

from cdc_tasks.errors import mask_secrets

__all__ = ["configure", "use_standard_logging"]


# Below these levels these loggers write tokens, URLs, rows or SQL parameters. No setting lowers them further.
_NEVER_BELOW: Final = {
    "celery.pool": logging.INFO,  # the arguments of each task
    "httpx": logging.WARNING,
    "requests": logging.INFO,
    "slack_sdk": logging.INFO,  # each request, with the message
    "sqlalchemy": logging.WARNING,  # statements, parameters and rows
    "urllib3": logging.INFO,  # each path, which contains a webhook's secret
}

# Celery's line for a received task; the line for its end has the same id. A line costs a worker as much time as an
# acknowledgement.
_ONLY_IN_DEBUG: Final = "celery.worker.strategy"


def configure(*, json: bool = False, level: str | int = "info", file: str | None = None) -> None:
    """Send the events of structlog and of the standard library's loggers to standard error, or to `file`.

    `level` is a name or a number of the standard library. After a log rotation the file is opened again.
    """
    least = _number(level)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=file is None and _wants_colours(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = WatchedFileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    for name, floor in _NEVER_BELOW.items():
        logging.getLogger(name).setLevel(max(least, floor))
    logging.getLogger(_ONLY_IN_DEBUG).setLevel(
        least if least <= logging.DEBUG else max(least, logging.WARNING)
    )


def _wants_colours() -> bool:
    """Return whether to colour standard error, by https://no-color.org and https://force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if forced := os.environ.get("FORCE_COLOR"):
        return forced != "0"
    return sys.stderr.isatty()


def use_standard_logging() -> None:
    """Send our events to the standard library's loggers, as `event key=value`, unless structlog is configured.

    So a worker of an application's own app logs our lines to the same place as its own.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            _mask,
            structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _number(level: str | int) -> int:
    """Return the next standard level at or above `level`: structlog supports only those."""
    number = level if isinstance(level, int) else logging.getLevelNamesMapping()[level.upper()]
    return min(50, max(10, -(-number // 10) * 10))


def _mask(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = mask_secrets(value)
    return event
