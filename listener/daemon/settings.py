"""What the environment says to the listener, on top of what it says to everybody (`cdc_tasks.settings`)."""

from __future__ import annotations

from typing import Annotated, Literal

from kombu.transport import TRANSPORT_ALIASES
from pydantic import AfterValidator, ByteSize, Field, SecretStr

from cdc_tasks.errors import CDCError
from cdc_tasks.settings import Address, BrokerURL, ConnectionSettings, LogSettings, Settings, load
from listener.daemon.database_url import DatabaseType, detect_database_type

__all__ = ["ListenerSettings", "LogSettings", "RouteSettings", "load"]

_NAME = r"^[a-z0-9_]{1,63}$"  # what PostgreSQL allows in a slot's name


def _watchable(url: SecretStr) -> SecretStr:
    try:
        detect_database_type(url.get_secret_value())
    except CDCError as error:
        raise ValueError(error.message) from None
    return url


def _known_broker(url: SecretStr) -> SecretStr:
    scheme = url.get_secret_value().partition("://")[0].partition("+")[0]
    if scheme not in TRANSPORT_ALIASES:
        raise ValueError(f"Celery has no broker transport {scheme!r}")
    return url


class RouteSettings(Settings):
    """Where the routes are."""

    cdc_routes: str = Field(
        "listener.routes:setup_router",
        pattern=r"^\w[\w.]*:[\w.]+$",
        description="module:attribute of a BinlogRouter, or of a function that returns one.",
    )
    database_url: Address | None = Field(
        None, description="What a routes function that has a parameter `schema` is given follows from it."
    )

    @property
    def source_url(self) -> str | None:
        """DATABASE_URL, where it is set."""
        return self.database_url.get_secret_value() if self.database_url else None


class ListenerSettings(LogSettings, RouteSettings, ConnectionSettings):
    """All that the listener needs."""

    database_url: Annotated[Address, AfterValidator(_watchable)] = Field(
        description=ConnectionSettings.model_fields["database_url"].description
    )
    celery_broker_url: Annotated[BrokerURL, AfterValidator(_known_broker)] = Field(
        ConnectionSettings.model_fields["celery_broker_url"].default,
        description=ConnectionSettings.model_fields["celery_broker_url"].description,
    )
    celery_config_module: str | None = Field(
        None,
        description="The module with Celery's settings, instead of the celeryconfig.py of a checkout or our own; "
        "yours starts with: from cdc_tasks.config.celery import *",
    )
    cdc_name: str = Field(
        "cdc_tasks",
        pattern=_NAME,
        description="Names this listener: its slot, publication, checkpoint and lock. "
        "Up to 63 of a-z, 0-9 and _; different for each listener.",
    )
    cdc_plugin: Literal["pgoutput", "wal2json"] = Field(
        "pgoutput",
        description="PostgreSQL's output plugin: pgoutput, which is always there, or wal2json, which cannot read "
        "partitioned tables.",
    )
    cdc_slot: str | None = Field(
        None, pattern=_NAME, description="PostgreSQL's replication slot, if not named as CDC_NAME says."
    )
    cdc_publication: str | None = Field(
        None, pattern=_NAME, description="PostgreSQL's publication, if not named as CDC_NAME says."
    )
    cdc_slot_failover: bool = Field(
        default=False,
        description="true: PostgreSQL 17 and later copies the slot to its standbys, to survive a failover.",
    )
    cdc_column_lists: bool = Field(
        default=False,
        description="true: PostgreSQL 15 and later sends only the columns that routes ask for. "
        "See docs/operating.md for what that asks of migrations.",
    )
    cdc_server_id: int | None = Field(
        None,
        ge=1,
        le=2**32 - 1,
        description="The server_id of the listener on MySQL and MariaDB, unique among the replicas; "
        "if not set, derived from CDC_NAME.",
    )
    cdc_durability: Literal["memory", "fsync", "replicated"] = Field(
        "memory",
        description="When the database may forget a change: once the broker has it in memory, "
        "on its disk (fsync), or on a replica (replicated).",
    )
    cdc_batch_size: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="At most so many changes are published at a time, which bounds the memory.",
    )
    cdc_batch_wait: float = Field(
        1.0,
        ge=0.25,
        le=3600,
        description="Seconds that a change of a route with batch= waits for others, at most.",
    )
    cdc_coalesce_interval: float = Field(
        0.5, gt=0, le=3600, description="Seconds between two tasks of a route with coalesce=True, at least."
    )
    cdc_replay_window: float = Field(
        0.0,
        ge=0,
        le=7 * 86_400,
        description="A broker that lost its data is given again what was published in so many seconds before. "
        "PostgreSQL keeps that much more log on its disk; MySQL and MariaDB have it anyway.",
    )
    cdc_max_queue: int | None = Field(
        None,
        ge=1,
        description="Reading pauses while a queue is longer than this; if not set, it never does.",
    )
    cdc_lag_alarm: ByteSize = Field(
        ByteSize(1024**3),
        gt=0,
        description="Warn when the database keeps more log for us than this, e.g. 500MB or 2GiB.",
    )

    @property
    def database_type(self) -> DatabaseType:
        return detect_database_type(self.database_url.get_secret_value())

    @property
    def slot(self) -> str:
        return self.cdc_slot or self.cdc_name

    @property
    def publication(self) -> str:
        return self.cdc_publication or self.cdc_name
