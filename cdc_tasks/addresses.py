"""Checks that a URL is unambiguous before a driver gets it: drivers print URLs that they cannot parse."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["check_address", "check_redis_address"]

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:]*)(?::(?P<port>\d{0,5}))?")
_OF_REDIS: Final = ("redis://", "rediss://", "unix://")
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIGHEST_PORT: Final = 65535
_ESCAPE: Final = "in user and password, write each of : / ? # [ ] @ % as %XX, e.g. @ as %40"


def check_address(text: str) -> None:
    """Raise ValueError if programs could parse the URL in different ways; the message has no part of the URL.

    Several URLs, separated by semicolons, are alternatives, as in kombu's broker URLs.
    """
    for each in text.split(";"):
        _check(each)


def check_redis_address(text: str) -> None:
    """Raise ValueError if it is not the address of one Redis; the message has no part of the URL."""
    if not text.startswith(_OF_REDIS):
        raise ValueError(f"must start with one of {', '.join(_OF_REDIS)}")
    check_address(text)


def _check(url: str) -> None:
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise ValueError("it is not a URL with a scheme such as redis://, amqp://, postgresql:// or mysql://")
    if _UNSAFE.search(url):
        raise ValueError(f"it contains a blank, a control character or a backslash; {_ESCAPE}")
    authority, rest = _split(url[scheme.end() :])
    if "@" in rest:
        raise ValueError(f"it has an @ after the host; {_ESCAPE}")
    login, _, hosts = authority.rpartition("@")
    if _BAD_PERCENT.search(login) or set("@[]") & set(login):
        raise ValueError(f"its user or password is not escaped; {_ESCAPE}")
    for host in hosts.split(","):
        _check_host(host)


def _split(tail: str) -> tuple[str, str]:
    """Return what is before and after the first of `/ ? #`."""
    end = next((at for at, character in enumerate(tail) if character in "/?#"), len(tail))
    return tail[:end], tail[end:]


def _check_host(text: str) -> None:
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or int(found["port"] or 0) > _HIGHEST_PORT:
        raise ValueError(f"its host and port are not valid; {_ESCAPE}")
