"""Messaging services: one module each, found by its name, and the protocol that they implement."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from cdc_tasks.errors import CDCError
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from pydantic import SecretStr

    from cdc_tasks.notify.message import Message

__all__ = ["TIMEOUT", "Adapter", "Rate", "Recipient", "adapter_for", "rate_of", "register"]

TIMEOUT = 10  # seconds, for a connection and for each answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """One account of one user, as the service needs it."""

    address: str | None  # a channel or user id, if the service has those
    secret: SecretStr  # a token, or a webhook URL
    email: str


@dataclass(frozen=True, slots=True)
class Rate:
    """The most messages a second, over all workers; 0: no limit."""

    channel: float = 0
    service: float = 0


class Adapter(Protocol):
    """A service: a module of this package, or an object that your module passes to `register`.

    It owns its connections, keeps no state between calls, and blocks for seconds at most. It raises only the errors of
    `cdc_tasks.notify.send_errors`, which state whether the message was sent: the errors of its library may contain
    tokens and URLs. If it raises no error, the service has taken the message. It may have an attribute `RATE`, which
    CDC_RATES overrides.
    """

    def send(self, recipient: Recipient, message: Message) -> None:
        """Send the message once, without retrying."""

    def check(self, recipient: Recipient) -> None:
        """Raise RefusedError if the account is wrong, as far as this shows without sending anything."""


_registered: dict[str, Adapter] = {}


class UnknownServiceError(CDCError):
    """There is no adapter for this service."""


def register(service: str, adapter: Adapter) -> None:
    """Add your own service; call this in a module that CDC_TASK_MODULES names."""
    _registered[service] = adapter


def adapter_for(service: str) -> Adapter:
    """Return the service's adapter; raises UnknownServiceError."""
    ours = _shipped()
    if service in ours:
        return cast("Adapter", import_module(f"{__name__}.{service}"))
    if service in _registered:
        return _registered[service]
    raise UnknownServiceError(
        f"There is no service {service!r}; the services are: {', '.join([*ours, *_registered])}."
    )


@cache
def _shipped() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def rate_of(service: str) -> Rate:
    """Return the service's rate limit; raises UnknownServiceError."""
    chosen = worker_settings().cdc_rates.get(service)
    if chosen is not None:
        return Rate(*chosen)
    return cast("Rate", getattr(adapter_for(service), "RATE", Rate()))
