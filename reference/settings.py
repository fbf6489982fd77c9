"""docs/settings.md: all variables, from the classes of settings; a field's description is also the hint in errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ByteSize, SecretStr
from pydantic_core import PydanticUndefined

from cdc_tasks.environment import TWINS
from cdc_tasks.settings import TracingSettings, WorkerSettings
from cdc_tasks.variables import FILE, SECRETS
from listener.console.settings import ConsoleSettings
from listener.daemon.settings import ListenerSettings
from reference.text import escaped, page, table

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from cdc_tasks.settings import Settings

__all__ = ["fields", "settings_page", "undescribed", "unitless"]

_NOTHING: Final = "–"  # noqa: RUF001 - a dash, as in every table of the docs

_HEAD = """
All of them are environment variables, read once at start-up. The program lists all unusable values together, each
with the variable, the value (secrets masked) and the hint. An empty variable counts as not set. `check`, and the log of
listener and workers, name each variable `CDC_…` that is not on this page.

`manage.py cdc` also reads the variables `CDC_…` from Django's settings: see [Django](django.md#where-it-finds-things).
Boolean values are `true` and `false`. A size is a number of bytes, or has a unit: `500MB`, `2GiB`.
"""

_TWINS = """
Other programs read some of these variables, too, and may mean something else by them. Each has a twin that only
cdc-tasks reads. The twin has priority, and an error names the one that is set. With `CDC_APP` an error names the app's
setting (`broker_url of the app shop`) if the value comes from there. `docker-compose.yml` sets the plain names: nothing
else reads them in its containers.
"""

_READERS: Final[Mapping[str, type[Settings]]] = {
    "listener": ListenerSettings,
    "workers": WorkerSettings,
    "console": ConsoleSettings,
}

# What a number counts.
_UNITS: Final = {
    "cdc_batch_size": "changes",
    "cdc_batch_wait": "seconds",
    "cdc_coalesce_interval": "seconds",
    "cdc_journal_age": "seconds",
    "cdc_key_partitions": "queues",
    "cdc_max_parked": "changes and tasks",
    "cdc_max_queue": "messages",
    "cdc_max_set_aside": "messages",
    "cdc_messages_kept": "messages",
    "cdc_queue_alarm": "seconds",
    "cdc_replay_window": "seconds",
    "cdc_server_id": "a number",
}

# What this page says beside the description, mostly with links.
_MORE: Final = {
    "DATABASE_URL": "SQLAlchemy's forms such as `postgresql+psycopg2://` work, too. In user and password, write each of "
    "`: / ? # [ ] @ %` as `%XX`.",
    "CDC_DATABASE_PASSWORD_COMMAND": "See [passwords that expire](operating.md#passwords-that-expire).",
    "CELERY_CONFIG_MODULE": "A `celeryconfig.py` that does not is considered another application's, and not used.",
    "CACHE_URL": "A listener on MySQL or MariaDB keeps its bookmark there.",
    "CDC_LOG_FORMAT": "For the listener `json` is the same as `--json-logs`.",
    "CDC_LOG_LEVEL": "The same as `--log-level`. A worker's level is Celery's `--loglevel`.",
    "CDC_CONTEXT_SHOWN": "See [what is shown](context.md#what-is-shown).",
    "CDC_QUEUE_PREFIX": "Change it when [the old queues are empty](operating.md#rabbitmqs-queues-and-rights): after that no worker takes "
    "from them.",
    "CDC_KEY_PARTITIONS": "See [order by key on RabbitMQ](operating.md#order-by-key-on-rabbitmq). Change it when these queues are "
    "empty.",
    "CDC_NAME": "A server or a broker can have only one listener of each name.",
    "CDC_APP": "The same as `-A`. Celery then reads `CELERY_BROKER_URL` in its own way, and `CACHE_URL` is not read: see "
    "[your own app](own-celery-app.md).",
    "CDC_ROUTES": "A function with a parameter `schema` gets `public` on PostgreSQL, and on MySQL and MariaDB the name of the "
    "database in `DATABASE_URL`.",
    "CDC_PLUGIN": "wal2json must be installed on the server: see [wal2json](operating.md#wal2json).",
    "CDC_COLUMN_LISTS": "See [lists of columns](operating.md#lists-of-columns).",
    "CDC_MAX_PARKED": "See [a route that fails](operating.md#a-route-that-fails).",
    "CDC_METRICS_ADDRESS": "See [metrics](metrics.md). Each listener on a machine needs its own.",
    "CDC_QUEUE_ALARM": "See [alerts](metrics.md#alerts).",
    "CDC_MESSAGES_KEPT": "See [the record of messages](console.md#messages).",
    "CDC_RECENT_SIZE": "See [what came last](watch.md#what-came-last).",
    "CDC_JOURNAL": "See [replay](replay.md).",
    "CDC_CONSOLE_ADDRESS": "See [the console](console.md).",
    "CDC_CONSOLE_PASSWORD": "8 characters or more.",
    "CDC_CONSOLE_READ_PASSWORD": "8 characters or more.",
    "CDC_OTEL": "See [tracing](tracing.md).",
}


class _Variable(NamedTuple):
    """A variable that no class of settings has."""

    default: str
    type: str
    read_by: str
    meaning: str


_OTHERS: Final[Mapping[str, Mapping[str, _Variable]]] = {
    "Colours": {
        "NO_COLOR": _Variable(
            _NOTHING,
            "any text",
            "all",
            "Set: log lines and tables have no colours. Not set: they have colours on a terminal.",
        ),
        "FORCE_COLOR": _Variable(
            _NOTHING,
            "any text but `0`",
            "all",
            "Set: log lines and tables have colours, even if the output is not a terminal.",
        ),
    },
    "In a Django project": {
        "CDC_DATABASE": _Variable(
            "`default`",
            "text",
            "`manage.py cdc`",
            "The alias in `DATABASES` of the watched database. It may also be a Django setting.",
        ),
    },
    "Flower": {
        "FLOWER_ADDRESS": _Variable(
            "`127.0.0.1`",
            "text",
            "Flower",
            "Where its pages are served. Any address but this machine needs a password: without one Flower does not "
            "start.",
        ),
        "FLOWER_MAX_TASKS": _Variable("`10000`", "number", "Flower", "How many tasks it keeps."),
        "FLOWER_TASKS_COLUMNS": _Variable(
            "`name,uuid,state,args,kwargs,result,received,runtime,worker`",
            "texts, comma-separated",
            "Flower",
            "What its list of tasks shows. For a change, the arguments are table, event and position, without the row.",
        ),
        "FLOWER_BASIC_AUTH": _Variable(_NOTHING, "text", "Flower", "`user:password`"),
        "CDC_CONSOLE_URL": _Variable(
            _NOTHING,
            "text",
            "Flower",
            "Where the [console](console.md) is for a browser, e.g. `https://console.example.com`: Flower's page of each task "
            "links to the task's page in the console.",
        ),
        "CDC_FLOWER_HOSTS": _Variable(
            _NOTHING,
            "texts, comma-separated",
            "Flower",
            "Names under which a Flower without a password answers besides `localhost`, e.g. behind a proxy that asks for "
            "the password.",
        ),
    },
    "Tests": {
        "CDC_TEST_DATABASE_URL": _Variable(
            _NOTHING,
            "an address",
            "pytest",
            "The database of the fixture `cdc`; see [test your routes](testing.md).",
        ),
    },
}

_FILES: Final = """
A secret may be in a file instead, as in containers, Kubernetes and systemd. The variable's name followed by `_FILE`
names the file. Line breaks at its end are not part of the value. The file is read once, at start-up. A variable and its
`_FILE` cannot both be set. If a file is missing, empty, unreadable or not text, an error names it. For a password that changes while the
listener runs, use [`CDC_DATABASE_PASSWORD_COMMAND`](operating.md#passwords-that-expire).
"""

_ROW_HEAD: Final = ("variable", "default", "type", "read by", "meaning")


def settings_page() -> str:
    """Return the page."""
    return page("Settings", _HEAD, *_parts())


def _parts() -> Iterator[str]:
    shared = [name for name in WorkerSettings.model_fields if name in ListenerSettings.model_fields]
    named = {
        "Listener and workers": shared,
        "Listener": _only(ListenerSettings, shared),
        "The console": list(ConsoleSettings.model_fields),
        "Workers": _only(WorkerSettings, shared),
        "Traces": list(TracingSettings.model_fields),
    }
    for title, names in named.items():
        yield f"## {title}"
        yield table(_ROW_HEAD, [_row(name) for name in names])
        if title == "Listener and workers":
            yield from _twins()
            yield from _files()
    for title, variables in _OTHERS.items():
        yield f"## {title}"
        yield table(_ROW_HEAD, [(f"`{name}`", *each) for name, each in variables.items()])
        if title == "Flower":
            yield "Flower also takes each of its own options as `FLOWER_…`."


def _only(kind: type[Settings], shared: list[str]) -> list[str]:
    return [name for name in kind.model_fields if name not in shared]


def _twins() -> Iterator[str]:
    yield "### Twins"
    yield _TWINS
    more = {
        "CELERY_BROKER_URL": " Your own app with `cdc_tasks.install` has its own address.",
        "CACHE_URL": " [Your own app](own-celery-app.md) reads only this one: a cache may be emptied at any time.",
    }
    yield table(
        _ROW_HEAD,
        [
            (
                f"`{twin}`",
                _NOTHING,
                _type(fields()[name]),
                _readers(name.lower()),
                f"Instead of `{name}`.{more.get(name, '')}",
            )
            for name, twin in TWINS.items()
        ],
    )


def _files() -> Iterator[str]:
    yield "### Secrets in files"
    yield _FILES
    rows = [
        (f"`{name}{FILE}`", _NOTHING, "path of a file", "", f"A file with `{name}`.")
        for name in sorted(SECRETS)
    ]
    yield table(_ROW_HEAD, rows)


def fields() -> dict[str, FieldInfo]:
    """Return the fields of all classes of settings, by their variables; the listener's go first."""
    kinds: tuple[type[Settings], ...] = (WorkerSettings, ListenerSettings, ConsoleSettings, TracingSettings)
    return {name.upper(): field for kind in kinds for name, field in kind.model_fields.items()}


def _row(name: str) -> tuple[str, ...]:
    variable, field = name.upper(), fields()[name.upper()]
    default = _default(field.default)
    description = escaped(field.description or "")
    more = _MORE.get(variable, "")
    return (
        f"`{variable}`",
        default if default == _NOTHING else f"`{default}`",
        _type(field),
        _readers(name),
        f"{description} {more}".strip(),
    )


# Who reads a variable besides the classes of settings.
_READ_TOO: Final = {
    "cdc_app": "listener, `python -m cdc_tasks`",
    "cdc_otel": "application, listener, workers",
    "celery_config_module": "listener, workers",
}


def _readers(name: str) -> str:
    if name in _READ_TOO:
        return _READ_TOO[name]
    found = [reader for reader, kind in _READERS.items() if name in kind.model_fields]
    return ", ".join(found)


def _default(default: Any) -> str:
    if default in (None, (), {}, "", PydanticUndefined):  # a dict has no hash
        return _NOTHING
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, ByteSize):
        return default.human_readable(separator="").replace(".0", "")
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _type(field: FieldInfo) -> str:
    name = next((name for name, each in fields().items() if each is field), "").lower()
    return _FORMS.get(name) or f"{_type_name(field.annotation, _UNITS.get(name, ''))}{_limits(field)}"


# Types that have a form of their own.
_FORMS: Final = {"cdc_rates": "`SERVICE=CHANNEL:SERVICE`, comma-separated"}


def _type_name(annotation: Any, unit: str) -> str:
    origin = get_origin(annotation)
    if origin in {Union, UnionType}:
        (inner,) = (each for each in get_args(annotation) if each is not NoneType)
        return _type_name(inner, unit)
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in get_args(annotation))
    if origin is tuple:
        return "texts, comma-separated"
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _type_name(get_args(annotation)[0], unit)
    name = _NAMES.get(annotation, "text")
    return f"{name} ({unit})" if unit in _COUNTED else name


_COUNTED: Final = frozenset(_UNITS.values()) - {"a number"}
_NAMES: Final[Mapping[Any, str]] = {
    int: "number",
    float: "number",
    bool: "boolean",
    ByteSize: "size",
    SecretStr: "secret text",
    str: "text",
}


def _limits(field: FieldInfo) -> str:
    """Return the least and the greatest value, as far as there are some."""
    said = []
    for each in field.metadata:
        for name, words in (("ge", "from"), ("gt", "above"), ("le", "to")):
            if (value := getattr(each, name, None)) is not None:
                said.append(f"{words} {value}")
    return f", {' '.join(said)}".replace("above 0 to", "above 0, up to") if said else ""


def unitless() -> set[str]:
    """Return the numbers of which the page does not say what they count."""
    numbers = {
        name for name, field in fields().items() if _type_name(field.annotation, "").startswith("number")
    }
    return {name for name in numbers if name.lower() not in _UNITS}


def undescribed() -> set[str]:
    """Return the settings whose field has no description."""
    return {name for name, field in fields().items() if not field.description}
