"""The console's settings, from the environment."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, NamedTuple, Self

from pydantic import Field, SecretStr

from cdc_tasks.errors import CDCError
from cdc_tasks.settings import Settings

__all__ = ["Address", "ConsoleRefusedError", "ConsoleSettings", "check_exposure"]

_LOOPBACK_NAMES: Final = frozenset({"localhost"})


class ConsoleRefusedError(CDCError):
    """The console cannot start with its settings."""


class Address(NamedTuple):
    """Where the console listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `host:port`, `[ipv6]:port` or `:port`. Raise ConsoleRefusedError."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConsoleRefusedError(
                f"CDC_CONSOLE_ADDRESS={text} is not an address.",
                hint="Write e.g. 127.0.0.1:5556 or [::1]:5556.",
            )
        return cls(host.strip("[]") or "127.0.0.1", int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host in _LOOPBACK_NAMES:
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class ConsoleSettings(Settings):
    """All settings of the console; the listener's settings define which listener it shows."""

    cdc_console_address: str = Field(
        "127.0.0.1:5556",
        description="Where the console listens, as host:port. Another host than this machine's own needs a password.",
    )
    cdc_console_password: SecretStr | None = Field(
        None, min_length=8, description="Anyone who has it sees the console, and acts there."
    )
    cdc_console_read_password: SecretStr | None = Field(
        None, min_length=8, description="Anyone who has it sees the console without rows, and cannot act."
    )
    cdc_console_hosts: str = Field(
        "",
        description="Names under which a browser may reach the console, comma-separated, besides this machine's own.",
    )
    cdc_console_user_header: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        description="The header in which a proxy names the person it has let in, e.g. X-Forwarded-User. Only for a "
        "console that only the proxy can reach.",
    )
    cdc_flower_url: str | None = Field(
        None, pattern=r"^https?://", description="Where Flower is, for links from the console to its tasks."
    )

    @property
    def address(self) -> Address:
        """Where it listens; raises ConsoleRefusedError."""
        return Address.parse(self.cdc_console_address)

    @property
    def hosts(self) -> frozenset[str]:
        """The names under which it may be reached, in lower case."""
        given = (name.strip().lower() for name in self.cdc_console_hosts.split(","))
        return frozenset({"localhost", "127.0.0.1", "::1", self.address.host.lower(), *filter(None, given)})

    @property
    def has_door(self) -> bool:
        """Whether a person has to log in."""
        return bool(self.cdc_console_password or self.cdc_console_user_header)


def check_exposure(settings: ConsoleSettings) -> None:
    """Raise ConsoleRefusedError if other machines could reach it without a password."""
    if not settings.address.is_loopback and not settings.has_door:
        raise ConsoleRefusedError(
            f"CDC_CONSOLE_ADDRESS={settings.cdc_console_address} can be reached from elsewhere without a password.",
            hint="Set CDC_CONSOLE_PASSWORD, or listen at 127.0.0.1:5556.",
            code="console_exposed",
        )
    if settings.cdc_console_read_password and not settings.has_door:
        raise ConsoleRefusedError(
            "CDC_CONSOLE_READ_PASSWORD is set, but anyone may act: CDC_CONSOLE_PASSWORD is not set.",
            hint="Set both.",
            code="console_exposed",
        )
