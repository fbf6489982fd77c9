"""What the environment says, read in one place: the worker's variables, and the reporting that both sides use."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cdc_tasks.errors import CDCError, mask_secrets

__all__ = ["Settings", "SettingsError", "WorkerSettings", "load", "worker_settings"]

T = TypeVar("T", bound="Settings")


class SettingsError(CDCError):
    """The environment has values that cannot be used."""


class Settings(BaseSettings):
    """A frozen object built once from the environment; each field's description is its documentation and its cure."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


def _redis_url(value: SecretStr) -> SecretStr:
    schemes = ("redis://", "rediss://", "unix://")
    if not value.get_secret_value().startswith(schemes):
        raise ValueError(f"must start with one of {', '.join(schemes)}")
    return value


RedisURL = Annotated[SecretStr, AfterValidator(_redis_url)]


class ConnectionSettings(Settings):
    """The three addresses that listener and workers share."""

    database_url: SecretStr = Field(
        description="The database, e.g. postgresql://user:password@host:5432/name or mysql://user:password@host/name."
    )
    celery_broker_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"), description="Any broker that Celery takes, e.g. redis://localhost:6379/0."
    )
    cache_url: RedisURL = Field(
        SecretStr("redis://localhost:6379/1"),
        description="Redis for the master cache, and for checkpoints where the broker is not Redis.",
    )


class WorkerSettings(ConnectionSettings):
    """What the tasks need."""

    ticket_base_url: str | None = Field(
        None, pattern=r"^https?://", description="Where a ticket's page is, e.g. https://helpdesk.example.com/tickets."
    )
    cdc_secret_key: SecretStr | None = Field(
        None,
        description="Encrypts the tokens of connected accounts; several, comma-separated, to change keys. "
        "Make one: python -m cdc_tasks new-key",
    )
    slack_api_url: str = Field(
        "https://slack.com/api/", pattern=r"^https?://.*/$", description="Slack's Web API; ends with a slash."
    )


@cache
def worker_settings() -> WorkerSettings:
    """Return the worker's settings, read once per process; raises SettingsError."""
    return load(WorkerSettings)


def load(kind: type[T]) -> T:
    """Read the environment; raises SettingsError that names every bad variable, its value and the cure."""
    try:
        return kind()
    except ValidationError as error:
        problems = "\n".join(f"  - {_problem(kind, dict(each))}" for each in error.errors())
        raise SettingsError(f"{error.error_count()} setting(s) cannot be used:\n{problems}") from None


def _problem(kind: type[Settings], error: dict[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else "environment"
    field = kind.model_fields.get(name)
    cure = f" {field.description}" if field and field.description else ""
    if error["type"] == "missing":
        return f"{name.upper()} is not set.{cure}"
    return f"{name.upper()}={_shown(field and field.annotation, error['input'])}: {error['msg'].removeprefix('Value error, ')}.{cure}"


def _shown(annotation: Any, value: Any) -> str:
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if annotation is not None and "SecretStr" in str(annotation) and "://" not in text:
        return "***"
    return repr(mask_secrets(text))
