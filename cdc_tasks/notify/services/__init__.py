"""Messaging services: one module each, found by its name. What each of them promises stands here."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
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
    """One account of one person, as the service knows it."""

    address: str | None  # a channel or user id, where the service has those
    secret: SecretStr  # a token, or a webhook URL
    email: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages a second, over all workers; 0: no limit."""

    channel: float = 0
    service: float = 0


class Adapter(Protocol):
    """A service: a module of this package, or of yours that calls `register`.

    It owns its connections, keeps no state between calls, and blocks for seconds at most. Errors of its library
    do not leave it: they carry tokens and URLs. What leaves it are those of `cdc_tasks.notify.send_errors`, which
    say what is known of the message. Without an error the service has it. It may have a `RATE`; CDC_RATES goes before
    that.
    """

    def send(self, recipient: Recipient, message: Message) -> None:
        """Send it once; no tries of its own."""

    def check(self, recipient: Recipient) -> None:
        """Raise RefusedError where the account can be seen to be wrong without sending anything."""


_registered: dict[str, Adapter] = {}


class UnknownServiceError(CDCError):
    """There is no adapter for this service."""


def register(service: str, adapter: Adapter) -> None:
    """Add a service of your own, from a module that CDC_TASK_MODULES names."""
    _registered[service] = adapter


def adapter_for(service: str) -> Adapter:
    """Return the service's adapter; raises UnknownServiceError."""
    ours = [module.name for module in pkgutil.iter_modules(__path__)]
    if service in ours:
        return cast("Adapter", import_module(f"{__name__}.{service}"))
    if service in _registered:
        return _registered[service]
    raise UnknownServiceError(
        f"There is no service {service!r}; there are: {', '.join([*ours, *_registered])}."
    )


def rate_of(service: str) -> Rate:
    """Return how fast messages may go to the service; raises UnknownServiceError."""
    chosen = worker_settings().cdc_rates.get(service)
    if chosen is not None:
        return Rate(*chosen)
    return cast("Rate", getattr(adapter_for(service), "RATE", Rate()))
