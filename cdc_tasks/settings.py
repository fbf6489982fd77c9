"""Settings from the environment: the worker's variables, and the error that names all bad ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cdc_tasks.addresses import check_address, check_redis_address
from cdc_tasks.environment import (
    TWINS,
    SettingsError,
    check_queue_prefix,
    secret_of,
    set_by,
    value_of,
    variable,
)
from cdc_tasks.errors import mask_secrets
from cdc_tasks.passwords import with_source
from cdc_tasks.variables import SECRETS
from cdc_tasks.words import counted

__all__ = [
    "Address",
    "BrokerSettings",
    "BrokerURL",
    "LogSettings",
    "RedisSettings",
    "Settings",
    "SettingsError",
    "TracingSettings",
    "WorkerSettings",
    "load",
    "worker_settings",
]

T = TypeVar("T", bound="Settings")


class Settings(BaseSettings):
    """A frozen object, built once from the environment. A field's description is also the hint in errors."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


def _address(value: SecretStr) -> SecretStr:
    check_address(value.get_secret_value())
    return value


# The parameters that kombu takes after the ? of a URL: fewer than Redis' own client.
_BROKER_PARAMETERS: Final = frozenset({"heartbeat", "login_method"})  # and all that starts with ssl_
_BY_KOMBU: Final = frozenset(
    {"redis", "rediss", "sentinel", "amqp", "amqps", "pyamqp"}
)  # other transports read the URL themselves


def _broker_url(value: SecretStr) -> SecretStr:
    for url in _address(value).get_secret_value().split(";"):
        if url.partition("://")[0] not in _BY_KOMBU:
            continue
        given = [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
        unknown = [name for name in given if name not in _BROKER_PARAMETERS and not name.startswith("ssl_")]
        if unknown:
            raise ValueError(
                f"Celery does not take these parameters in a broker's URL: {', '.join(unknown)}; put options into "
                "broker_transport_options of the module in CELERY_CONFIG_MODULE"
            )
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    check_redis_address(value.get_secret_value())
    return value


def _fernet_keys(value: SecretStr) -> SecretStr:
    from cryptography.fernet import Fernet

    for key in value.get_secret_value().split(","):
        try:
            Fernet(key.strip())
        except ValueError:
            raise ValueError("must be 32 bytes in URL-safe base64, or several of those") from None
    return value


def _words(value: object) -> object:
    return (
        tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value
    )


def _rates(value: object) -> object:
    """Parse `slack=1:5,teams=2:10`: messages a second to one channel, and to the service."""
    if not isinstance(value, str):
        return value
    rates = {}
    for word in value.split(","):
        service, _, numbers = word.strip().partition("=")
        channel, _, whole = numbers.partition(":")
        try:
            rates[service] = (float(channel), float(whole))
        except ValueError:
            raise ValueError(f"{word.strip()!r} is not of the form service=channel:service") from None
        if min(rates[service]) < 0:
            raise ValueError(f"{word.strip()!r} has a rate below 0")
    return rates


BrokerURL = Annotated[SecretStr, AfterValidator(_broker_url)]
Address = Annotated[SecretStr, AfterValidator(_address)]
RedisURL = Annotated[SecretStr, AfterValidator(_redis_url)]
FernetKeys = Annotated[SecretStr, AfterValidator(_fernet_keys)]
Rates = Annotated[dict[str, tuple[float, float]], NoDecode, BeforeValidator(_rates)]
QueuePrefix = Annotated[str, AfterValidator(check_queue_prefix)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]  # comma-separated


class BrokerSettings(Settings):
    """The broker and the modules of tasks: all that `celeryconfig.py` and Flower need."""

    celery_broker_url: BrokerURL = Field(
        SecretStr("redis://localhost:6379/0"),
        description="Any broker that Celery supports, e.g. redis://localhost:6379/0 or amqp://user:password@host//.",
    )
    cdc_task_modules: Words = Field(
        (), description="Your own modules of tasks, comma-separated, e.g. myapp.tasks,myapp.more_tasks."
    )
    cdc_queue_prefix: QueuePrefix = Field(
        "cdc_",
        description="The prefix of the queue names, the same for listener and workers: up to 64 of "
        "a-z, A-Z, 0-9, _ and -.",
    )
    cdc_key_partitions: int = Field(
        8,
        ge=1,
        le=256,
        description="RabbitMQ only: the number of queues that share the tasks with a key, the same for listener and "
        "workers. Up to that many workers run such tasks.",
    )


class RedisSettings(BrokerSettings):
    """The broker and the cache: all settings that need no database."""

    cache_url: RedisURL = Field(
        SecretStr("redis://localhost:6379/1"),
        description="Redis for the master cache, and for checkpoints if the broker is not Redis.",
    )


class ConnectionSettings(RedisSettings):
    """The three addresses that the listener and the workers share."""

    database_url: Address = Field(
        description="The database, e.g. postgresql://user:password@host:5432/name or mysql://user:password@host/name."
    )
    cdc_database_password_command: str | None = Field(
        None,
        description="A program, with its arguments, that prints the database's password. Listener and workers run "
        "it for each connection: for passwords that expire, e.g. aws rds generate-db-auth-token --hostname … "
        "--port 5432 --username …",
    )
    cdc_database_password_function: str | None = Field(
        None,
        pattern=r"^\w[\w.]*:[\w.]+$",
        description="module:function that returns the database's password, instead of the command.",
    )

    @model_validator(mode="after")
    def _name_the_password(self) -> Self:
        """Add to `database_url` where its password comes from: code that connects gets only the URL."""
        command, function = self.cdc_database_password_command, self.cdc_database_password_function
        if command and function:
            raise ValueError("set either CDC_DATABASE_PASSWORD_COMMAND or CDC_DATABASE_PASSWORD_FUNCTION")
        if command or function:
            url = with_source(self.database_url.get_secret_value(), command=command, function=function)
            self.__dict__["database_url"] = SecretStr(url)  # the object is frozen
        return self


class LogSettings(Settings):
    """The format and level of log lines. A worker's level is Celery's option `--loglevel`."""

    cdc_log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people (text) or for machines (json)."
    )
    cdc_context_shown: Words = Field(
        (),
        description="The values of a transaction's context that logs, dead letters and parked changes show, "
        "comma-separated, e.g. request_id,user_id. Other values may be personal, and are never shown.",
    )
    cdc_log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least severe log lines that the listener shows: debug, info, warning or error.",
    )


class TracingSettings(Settings):
    """Whether a process takes part in traces; see `cdc_tasks.tracing`."""

    cdc_otel: bool = Field(
        False,
        description="OpenTelemetry traces: true or false. They need the extra otel, and go to the server that "
        "OTEL_EXPORTER_OTLP_ENDPOINT names.",
    )


class WorkerSettings(LogSettings, ConnectionSettings):
    """All settings of the tasks."""

    ticket_base_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="The address of the tickets' pages, e.g. https://helpdesk.example.com/tickets.",
    )
    cdc_secret_key: FernetKeys | None = Field(
        None,
        description="The key that encrypts the tokens of connected accounts; to change it, several, comma-separated. "
        "Create one: python -m cdc_tasks new-key",
    )
    slack_api_url: str = Field(
        "https://slack.com/api/", pattern=r"^https?://.*/$", description="Slack's Web API; ends with a slash."
    )
    teams_hosts: Words = Field(
        ("*.logic.azure.com", "*.api.powerplatform.com", "*.webhook.office.com"),
        description="Allowed hosts of Teams webhooks, comma-separated, * for any name; "
        "with a port if it is not 443, e.g. hooks.example.com:8443.",
    )
    teams_allow_loopback: bool = Field(
        default=False,
        description="Also accept webhooks on this machine, without TLS: for tests and the demo.",
    )
    teams_card: Literal["wrapped", "bare"] = Field(
        "wrapped",
        description="`bare` for a Workflow that expects only the card, not a message that contains it.",
    )
    cdc_lost_answer: Literal["send-again", "give-up"] = Field(
        "send-again",
        description="What to do if a service may have taken a message but its answer was lost: "
        "send it again, perhaps a second time (send-again), or not, perhaps never (give-up).",
    )
    cdc_rates: Rates = Field(
        {},
        description="Messages a second to one channel, and to a whole service, over all workers; 0: no limit. "
        "The default: slack=1:5,teams=2:10.",
    )
    cdc_messages_kept: int = Field(
        20_000,
        ge=0,
        le=10_000_000,
        description="How many messages are kept in the record that the console shows; 0: none. A message takes about "
        "200 bytes of the Redis at CACHE_URL.",
    )


@cache
def worker_settings() -> WorkerSettings:
    """Return the worker's settings, read once per process; raises SettingsError."""
    return load(WorkerSettings)


def load(kind: type[T], **given: Any) -> T:
    """Read the environment, and the files that it names; `given` takes precedence.

    Raises SettingsError with every bad variable, its value and a hint.
    """
    read, problems = _read(kind, given)
    try:
        found = kind(**{**read, **given})
    except ValidationError as error:
        found_here = [dict(each) for each in error.errors() if not problems.keys() & each["loc"]]
        raise _unusable([*problems.values(), *(_problem(kind, each) for each in found_here)]) from None
    if problems:
        raise _unusable(list(problems.values()))
    return found


def _unusable(problems: list[str]) -> SettingsError:
    listed = "\n".join(f"  - {each}" for each in problems)
    return SettingsError(f"{counted(len(problems), 'setting')} cannot be used:\n{listed}")


def _read(kind: type[Settings], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return, by field, the values that pydantic does not find by itself, and the errors of files.

    These are variables that take precedence over others, and secrets in files.
    """
    read: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for field in kind.model_fields.keys() - given.keys():
        name = variable(field.upper())
        if name not in SECRETS and name not in TWINS.values():
            continue
        try:
            value = secret_of(name) if name in SECRETS else value_of(name)
        except SettingsError as error:
            problems[field] = f"{error.message} {error.hint}"
        else:
            read.update({field: value} if value is not None else {})
    return read, problems


def _problem(kind: type[Settings], error: dict[str, Any]) -> str:
    problem = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # of several values together, which are not shown: secrets may be among them
        return f"{problem}."
    name = str(error["loc"][0])
    field = kind.model_fields.get(name)
    hint = f" {field.description}" if field and field.description else ""
    shown = set_by(name.upper())
    if error["type"] == "missing":
        return f"{shown} is not set.{hint}"
    return f"{shown}={_shown(field and field.annotation, error['input'])}: {problem}.{hint}"


def _shown(annotation: Any, value: Any) -> str:
    """Return the value for an error's text, or *** if it may contain a password."""
    if isinstance(value, SecretStr) or "SecretStr" in str(annotation):
        return "***"
    return repr(mask_secrets(str(value)))
