"""Who may see the console, who may act there, and which pages may send requests."""

from __future__ import annotations

import getpass
import hmac
import secrets
import socket
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from listener.console.settings import ConsoleSettings

__all__ = ["Access", "Guard", "Person"]

_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_TRIES: Final = 10  # wrong passwords
_WITHIN: Final = 60.0  # seconds


class Person(NamedTuple):
    """A viewer of the console."""

    name: str
    may_act: bool


class Guard:
    """ASGI middleware: refuses host names that are not the console's, and adds security headers to each response.

    A page from elsewhere can make a browser resolve its own name to 127.0.0.1 (DNS rebinding): hence the names.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        if self._is_ours(scope):
            await self._app(scope, receive, send_with_headers)
            return
        text = b"This name is not the console's. To allow it, add it to CDC_CONSOLE_HOSTS.\n"
        start = {"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]}
        await send_with_headers(start)
        await send({"type": "http.response.body", "body": text})

    def _is_ours(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        host = given.rpartition("]")[0].lstrip("[") if given.startswith("[") else given.partition(":")[0]
        return host.lower() in self._hosts


class Access:
    """Sessions of people, each in a signed cookie."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._settings = settings
        self._failed: deque[float] = deque(maxlen=_TRIES)

    def person(self, request: Request) -> Person | None:
        """Return the viewer, None if unknown yet."""
        if (header := self._settings.cdc_console_user_header) is not None:
            name = request.headers.get(header, "").strip()
            return Person(name[:100], may_act=True) if name else None
        if self._settings.cdc_console_password is None:
            return Person(f"{getpass.getuser()}@{socket.gethostname()}", may_act=True)
        session = request.session
        return Person(session["name"], session["may_act"]) if "name" in session else None

    def enter(self, request: Request, name: str, password: str) -> Person | None:
        """Return the viewer with this password, and remember it; None if there is none. Raise HTTPException 429."""
        now = monotonic()
        if len(self._failed) == _TRIES and now - self._failed[0] < _WITHIN:
            raise HTTPException(429, "Too many wrong passwords. Try again in a minute.")
        for may_act, secret in (
            (True, self._settings.cdc_console_password),
            (False, self._settings.cdc_console_read_password),
        ):
            if secret is not None and hmac.compare_digest(
                secret.get_secret_value().encode(), password.encode()
            ):
                request.session.clear()
                request.session.update(name=name[:100], may_act=may_act)
                return Person(name, may_act)
        self._failed.append(now)
        return None

    @staticmethod
    def leave(request: Request) -> None:
        """End the session."""
        request.session.clear()

    @staticmethod
    def token(request: Request) -> str:
        """Return the token that each form of this session has to send."""
        return str(request.session.setdefault("token", secrets.token_urlsafe(24)))

    @staticmethod
    def check_form(request: Request, form: Any) -> None:
        """Raise HTTPException 403 if the form is not one of this session's pages."""
        expected, given = request.session.get("token", ""), str(form.get("token", ""))
        site = request.headers.get("sec-fetch-site", "same-origin")
        if not expected or not hmac.compare_digest(expected, given) or site not in {"same-origin", "none"}:
            raise HTTPException(403, "This form is old, or not from the console. Load the page again.")
