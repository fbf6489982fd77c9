"""What the environment says, read in one place: the worker's variables, and how problems are reported."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cdc_tasks.addresses import check_address
from cdc_tasks.errors import CDCError, mask_secrets

__all__ = [
    "Address",
    "BrokerSettings",
    "BrokerURL",
    "LogSettings",
    "RedisSettings",
    "Settings",
    "SettingsError",
    "WorkerSettings",
    "load",
    "worker_settings",
]

T = TypeVar("T", bound="Settings")


class SettingsError(CDCError):
    """The environment has values that cannot be used."""


class Settings(BaseSettings):
    """A frozen object built once from the environment; a field's description is its document and hint."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


def _address(value: SecretStr) -> SecretStr:
    check_address(value.get_secret_value())
    return value


# What kombu takes behind the ? of a URL, which is less than Redis' own client does.
_BROKER_PARAMETERS: Final = frozenset({"heartbeat", "login_method"})  # and all that starts with ssl_
_BY_KOMBU: Final = frozenset(
    {"redis", "rediss", "sentinel", "amqp", "amqps", "pyamqp"}
)  # others read it themselves


def _broker_url(value: SecretStr) -> SecretStr:
    for url in _address(value).get_secret_value().split(";"):
        if url.partition("://")[0] not in _BY_KOMBU:
            continue
        given = [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
        unknown = [name for name in given if name not in _BROKER_PARAMETERS and not name.startswith("ssl_")]
        if unknown:
            raise ValueError(
                f"Celery takes no such parameters in a broker's URL: {', '.join(unknown)}; options belong into "
                "broker_transport_options of the module in CELERY_CONFIG_MODULE"
            )
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    schemes = ("redis://", "rediss://", "unix://")
    if not value.get_secret_value().startswith(schemes):
        raise ValueError(f"must start with one of {', '.join(schemes)}")
    return _address(value)


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
    """Read `slack=1:5,teams=2:10`: messages a second to one channel, and to the service."""
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
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]  # comma-separated


class BrokerSettings(Settings):
    """Where tasks travel, and which: all that `celeryconfig.py` needs, and so all that Flower needs."""

    celery_broker_url: BrokerURL = Field(
        SecretStr("redis://localhost:6379/0"),
        description="Any broker that Celery takes, e.g. redis://localhost:6379/0 or amqp://user:password@host//.",
    )
    cdc_task_modules: Words = Field(
        (), description="Your own modules of tasks, comma-separated, e.g. myapp.tasks,myapp.more_tasks."
    )


class RedisSettings(BrokerSettings):
    """Where tasks travel, and where tasks keep what they must know: all that needs no database."""

    cache_url: RedisURL = Field(
        SecretStr("redis://localhost:6379/1"),
        description="Redis for the master cache, and for checkpoints where the broker is not Redis.",
    )


class ConnectionSettings(RedisSettings):
    """The three addresses that listener and workers share."""

    database_url: Address = Field(
        description="The database, e.g. postgresql://user:password@host:5432/name or mysql://user:password@host/name."
    )


class LogSettings(Settings):
    """How log lines look; for workers `--loglevel` of Celery says how many there are."""

    cdc_log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people (text) or for machines (json)."
    )
    cdc_log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least severe log lines that the listener shows: debug, info, warning or error.",
    )


class WorkerSettings(LogSettings, ConnectionSettings):
    """What the tasks need."""

    ticket_base_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Where a ticket's page is, e.g. https://helpdesk.example.com/tickets.",
    )
    cdc_secret_key: FernetKeys | None = Field(
        None,
        description="Encrypts the tokens of connected accounts; several, comma-separated, to change keys. "
        "Make one: python -m cdc_tasks new-key",
    )
    slack_api_url: str = Field(
        "https://slack.com/api/", pattern=r"^https?://.*/$", description="Slack's Web API; ends with a slash."
    )
    teams_hosts: Words = Field(
        ("*.logic.azure.com", "*.api.powerplatform.com", "*.webhook.office.com"),
        description="Hosts that a Teams webhook may be on, comma-separated, * for any name; "
        "with a port where it is not 443, e.g. hooks.example.com:8443.",
    )
    teams_allow_loopback: bool = Field(
        default=False,
        description="Also take webhooks on this very machine, without TLS: for tests and the demo.",
    )
    teams_card: Literal["wrapped", "bare"] = Field(
        "wrapped",
        description="`bare` for a Workflow that posts the card itself and not a message that holds it.",
    )
    cdc_lost_answer: Literal["send-again", "give-up"] = Field(
        "send-again",
        description="When a service may have taken a message but its answer was lost: "
        "rather twice than never (send-again), or rather never than twice (give-up).",
    )
    cdc_rates: Rates = Field(
        {},
        description="Messages a second to one channel, and to a whole service, over all workers, 0 without limit, "
        "e.g. slack=1:5,teams=2:10 (which is the default).",
    )


@cache
def worker_settings() -> WorkerSettings:
    """Return the worker's settings, read once per process; raises SettingsError."""
    return load(WorkerSettings)


def load(kind: type[T]) -> T:
    """Read the environment; raises SettingsError that names every bad variable, its value and the hint."""
    try:
        return kind()
    except ValidationError as error:
        problems = "\n".join(f"  - {_problem(kind, dict(each))}" for each in error.errors())
        raise SettingsError(f"{error.error_count()} setting(s) cannot be used:\n{problems}") from None


def _problem(kind: type[Settings], error: dict[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else "environment"
    field = kind.model_fields.get(name)
    hint = f" {field.description}" if field and field.description else ""
    if error["type"] == "missing":
        return f"{name.upper()} is not set.{hint}"
    problem = error["msg"].removeprefix("Value error, ")
    return f"{name.upper()}={_shown(field and field.annotation, error['input'])}: {problem}.{hint}"


def _shown(annotation: Any, value: Any) -> str:
    """Return the value for people; nothing of one that may hold a password, since it could not be read."""
    if isinstance(value, SecretStr) or "SecretStr" in str(annotation):
        return "***"
    return repr(mask_secrets(str(value)))
