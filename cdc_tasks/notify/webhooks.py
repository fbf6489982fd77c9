"""Which URLs a webhook may have. A worker can reach private addresses; no user may make it call them.

`checked_url` and the call use the same parse of the URL. A URL that two parsers could read differently (a backslash, a
user name) is refused. `post` follows no redirect. It checks the host's address after connecting, when it is known, and
closes a connection to an address that is not public before it sends anything.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import LocationParseError, NewConnectionError
from urllib3.util import Url, parse_url

from cdc_tasks.notify.send_errors import RefusedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

__all__ = ["WebhookURL", "checked_url", "is_private_address", "post"]

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_TLS_PORT: Final = 443
# The characters of a URL by RFC 3986. A backslash is not among them: some parsers read it as a slash.
_ALLOWED: Final = re.compile(r"[A-Za-z0-9:/?#\[\]@!$&'()*+,;=._~%-]+")
_NAT64: Final = 0x0064_FF9B << 96


class WebhookURL(NamedTuple):
    """A URL that passed the check."""

    url: str
    is_loopback: bool  # on this machine, which a setting allows


class _PrivateAddressError(NewConnectionError):
    """The host's address is private, loopback or link-local; nothing was sent."""


def checked_url(text: str, hosts: Iterable[str], *, allow_loopback: bool = False) -> WebhookURL:
    """Return the URL to call; raises RefusedError.

    `hosts` are patterns such as `*.logic.azure.com`, with a port if it is not 443: `hooks.example.com:8443`.
    `allow_loopback` also allows this machine, and http there.
    """
    url = _parsed(text.strip())
    if allow_loopback and url.host in _LOOPBACK and url.scheme in {"http", "https"}:
        return WebhookURL(url.url, is_loopback=True)
    if url.scheme != "https":
        raise RefusedError("A webhook's URL must start with https://.")
    _check_host(url, tuple(hosts))
    return WebhookURL(url.url, is_loopback=False)


def _parsed(text: str) -> Url:
    if not _ALLOWED.fullmatch(text):
        raise RefusedError("This is not a URL.")
    try:
        url = parse_url(text)
    except LocationParseError:
        raise RefusedError("This is not a URL.") from None
    if not url.scheme or not url.host or "%" in url.host:
        raise RefusedError("This is not a URL.")
    if url.auth is not None:
        raise RefusedError("A webhook's URL must not have a user name.")
    return url


def _check_host(url: Url, patterns: tuple[str, ...]) -> None:
    host, port = url.host or "", url.port or _TLS_PORT
    for pattern in patterns:
        name, colon, number = pattern.lower().rpartition(":")
        wanted = (name, number) if colon else (pattern.lower(), str(_TLS_PORT))
        if fnmatchcase(host, wanted[0]) and str(port) == wanted[1]:
            return
    place = host if port == _TLS_PORT else f"{host}:{port}"
    raise RefusedError(
        f"{place!r} is not an allowed webhook host.",
        hint=f"to allow it: TEAMS_HOSTS={','.join([*patterns, place])}",
    )


def post(webhook: WebhookURL, payload: Any, **options: Any) -> requests.Response:
    """Post JSON and return the answer, a redirect included; `options` are those of `requests.post`.

    Raises the errors of requests; `is_private_address` returns whether the address was the cause.
    """
    with requests.Session() as session:
        if not webhook.is_loopback:
            session.mount("https://", _PublicAdapter())
        return session.post(webhook.url, json=payload, allow_redirects=False, **options)


def _is_public(text: str) -> bool:
    address = _embedded(ip_address(text.partition("%")[0]))
    return address.is_global and not address.is_multicast


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if int(address) >> 32 == _NAT64 >> 32:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _public_only(connection: HTTPConnection, connected: socket.socket) -> socket.socket:
    address = connected.getpeername()[0]
    if _is_public(address):
        return connected
    connected.close()
    raise _PrivateAddressError(connection, f"{connection.host} has the address {address}")


class _HTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _public_only(self, super()._new_conn())


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _PublicAdapter(HTTPAdapter):
    """Connects to public addresses only. Behind a proxy (HTTPS_PROXY) the proxy decides."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"https": _HTTPSPool, "http": HTTPConnectionPool}


def is_private_address(error: requests.RequestException) -> bool:
    """Return whether the call was refused because of the host's address."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, _PrivateAddressError)
