"""Middleware for ASGI: FastAPI, Starlette, and others.

app.add_middleware(ContextMiddleware, context=lambda scope: {"user_id": scope.get("state", {}).get("user_id")})
cdc_tasks.write_context(engine)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from cdc_tasks.outbox.current import acting, request_id_of

__all__ = ["ContextMiddleware"]

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]


class ContextMiddleware:
    """Gives a context, with the `request_id`, to each transaction in which a request writes.

    The id is that of the header X-Request-ID, or a new one. It is in `scope["cdc_request_id"]`.
    """

    def __init__(
        self, app: _App, *, context: Callable[[_Scope], Mapping[str, Any] | None] | None = None
    ) -> None:
        """`context` returns more values from a request's ASGI scope. It is called before the first write."""
        self._app = app
        self._context = context

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Run the application."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = scope["cdc_request_id"] = request_id_of(given.decode("latin-1"))
        more = self._context

        def values() -> dict[str, Any]:
            return {"request_id": request_id, **((more(scope) if more else None) or {})}

        with acting(values):
            await self._app(scope, receive, send)
