"""The listener's settings, from the environment; those that workers share are in `cdc_tasks.settings`."""

from __future__ import annotations

import os
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ByteSize, Field, SecretStr

from cdc_tasks.environment import TWINS, is_set
from cdc_tasks.errors import CDCError
from cdc_tasks.settings import Address, BrokerURL, ConnectionSettings, LogSettings, Settings
from cdc_tasks.settings import load as load_settings
from listener.daemon.database_url import DatabaseType, detect_database_type

__all__ = ["ListenerSettings", "LogSettings", "RouteSettings", "load", "split_address"]

T = TypeVar("T", bound=Settings)

_NAME = r"^[a-z0-9_]{1,63}$"  # PostgreSQL allows these as a slot's name


def _watchable(url: SecretStr) -> SecretStr:
    try:
        detect_database_type(url.get_secret_value())
    except CDCError as error:
        raise ValueError(error.message) from None
    return url


def _known_broker(url: SecretStr) -> SecretStr:
    from kombu.transport import TRANSPORT_ALIASES  # slow to load, and `routes` needs no broker

    scheme = url.get_secret_value().partition("://")[0].partition("+")[0]
    if scheme not in TRANSPORT_ALIASES:
        raise ValueError(f"Celery has no broker transport {scheme!r}")
    return url


def _servable(address: str | None) -> str | None:
    if address is not None:
        split_address(address)
    return address


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`, `[IPv6]:port`. Raise ValueError."""
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = host == f"[{bare}]"
    if not bare or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("it is not an address: write host:port, e.g. 127.0.0.1:9187 or [::1]:9187")
    if (":" in bare) is not is_bracketed:
        raise ValueError("an IPv6 address needs brackets: [::1]:9187")
    return bare, int(port)


def load(kind: type[T]) -> T:
    """Read the environment. Raise SettingsError.

    With CDC_APP the app has its own broker, and CELERY_BROKER_URL and CACHE_URL belong to other programs.
    """
    if not os.environ.get("CDC_APP"):
        return load_settings(kind)
    fields = kind.model_fields
    unread = {name for name in ("CELERY_BROKER_URL", "CACHE_URL") if not is_set(TWINS[name])}
    return load_settings(
        kind, **{name.lower(): fields[name.lower()].default for name in unread if name.lower() in fields}
    )


class RouteSettings(Settings):
    """The settings that name the routes."""

    cdc_routes: str = Field(
        "listener.routes:setup_router",
        pattern=r"^\w[\w.]*:[\w.]+$",
        description="module:attribute of a BinlogRouter, or of a function that returns one.",
    )
    cdc_app: str | None = Field(
        None,
        pattern=r"^\w[\w.]*(:[\w.]+)?$",
        description="Your own Celery app, as for celery -A: module or module:app. Broker, queues and the routes at its "
        "tasks come from it.",
    )
    database_url: Address | None = Field(
        None, description="A routes function with a parameter `schema` gets the schema that it names."
    )

    @property
    def has_routes(self) -> bool:
        """Whether CDC_ROUTES is set, and not the default."""
        return "cdc_routes" in self.model_fields_set

    @property
    def source_url(self) -> str | None:
        """DATABASE_URL, if it is set."""
        return self.database_url.get_secret_value() if self.database_url else None


class ListenerSettings(LogSettings, RouteSettings, ConnectionSettings):
    """All settings of the listener."""

    database_url: Annotated[Address, AfterValidator(_watchable)] = Field(
        description=ConnectionSettings.model_fields["database_url"].description
    )
    celery_broker_url: Annotated[BrokerURL, AfterValidator(_known_broker)] = Field(
        ConnectionSettings.model_fields["celery_broker_url"].default,
        description=ConnectionSettings.model_fields["celery_broker_url"].description,
    )
    celery_config_module: str | None = Field(
        None,
        description="The module with Celery's settings, instead of a checkout's celeryconfig.py or the built-in one; "
        "it starts with: from cdc_tasks.config.celery import *",
    )
    cdc_name: str = Field(
        "cdc_tasks",
        pattern=_NAME,
        description="Names this listener: its slot, publication, checkpoint and lock. "
        "Up to 63 of a-z, 0-9 and _; different for each listener.",
    )
    cdc_plugin: Literal["pgoutput", "wal2json"] = Field(
        "pgoutput",
        description="PostgreSQL's output plugin: pgoutput, which every server has, or wal2json, which cannot read "
        "partitioned tables.",
    )
    cdc_slot: str | None = Field(
        None, pattern=_NAME, description="PostgreSQL's replication slot; if not set, CDC_NAME."
    )
    cdc_publication: str | None = Field(
        None, pattern=_NAME, description="PostgreSQL's publication; if not set, CDC_NAME."
    )
    cdc_slot_failover: bool = Field(
        default=False,
        description="true: PostgreSQL 17 and later copies the slot to its standbys, so that it survives a failover.",
    )
    cdc_column_lists: bool = Field(
        default=False,
        description="true: PostgreSQL 15 and later sends only the columns that routes use. "
        "Migrations then have to follow docs/operating.md.",
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
        description="When the database may drop a change: when the broker has it in memory, "
        "on its disk (fsync), or on a replica (replicated).",
    )
    cdc_batch_size: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Up to this many changes are published at a time, which limits the memory.",
    )
    cdc_batch_wait: float = Field(
        1.0,
        ge=0.25,
        le=3600,
        description="Up to this many seconds a change of a route with batch= waits for others.",
    )
    cdc_coalesce_interval: float = Field(
        0.5,
        gt=0,
        le=3600,
        description="At least this many seconds pass between two tasks of a route with coalesce=True.",
    )
    cdc_replay_window: float = Field(
        0.0,
        ge=0,
        le=7 * 86_400,
        description="If the broker lost its data, the listener publishes the changes of this many seconds again."
        " PostgreSQL keeps that much more log on its disk; MySQL and MariaDB have it anyway.",
    )
    cdc_max_queue: int | None = Field(
        None,
        ge=1,
        description="The listener pauses while a queue is longer than this; if not set, it never pauses. "
        "A route's on_full= may say otherwise.",
    )
    cdc_max_set_aside: int = Field(
        1_000_000,
        ge=1,
        description='Up to this many messages of routes with on_full="set_aside" wait beside each full queue; '
        "then the listener pauses.",
    )
    cdc_max_parked: int = Field(
        100_000,
        ge=1,
        description="Up to this many changes and enqueued tasks are parked; then the listener pauses.",
    )
    cdc_lag_alarm: ByteSize = Field(
        ByteSize(1024**3),
        gt=0,
        description="Warn when the database keeps more log for us than this, e.g. 500MB or 2GiB.",
    )

    cdc_metrics_address: Annotated[str | None, AfterValidator(_servable)] = Field(
        None,
        description="Where /metrics, /livez and /readyz are served, e.g. 127.0.0.1:9187 or [::1]:9187; if not set, "
        "nowhere. The pages have numbers and no rows, and need no password.",
    )
    cdc_queue_alarm: float = Field(
        300.0,
        gt=0,
        description="Alert for a queue that is not emptied when its oldest message has waited this many "
        "seconds.",
    )

    cdc_recent_size: ByteSize = Field(
        ByteSize(64 * 1024**2),
        description="How much Redis memory the recent changes may use: the last changes, each with its row's key and "
        "the tasks it fired, for `changes` and the console. The default holds about a million. 0: nothing is noted.",
    )

    cdc_journal: str | None = Field(
        None,
        min_length=1,
        description="A directory for the journal: the changes that the listener read, to look them up and replay them. "
        "It has whole rows, so keep it as safe as the database. If not set, there is no journal.",
    )
    cdc_journal_age: float = Field(
        7 * 86_400.0,
        gt=0,
        description="The journal drops changes older than this many seconds.",
    )
    cdc_journal_size: ByteSize = Field(
        ByteSize(1024**3),
        ge=1_000_000,
        description="The journal drops the oldest changes when it is larger than this, e.g. 500MB or 2GiB.",
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
