"""Middleware for Flask.

init_app(app, context=lambda: {"user_id": flask.session.get("user_id")})
cdc_tasks.write_context(engine)   # with Flask-SQLAlchemy: db.engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from cdc_tasks.outbox.current import begin, end, request_id_of

__all__ = ["init_app"]


def init_app(app: Any, *, context: Callable[[], Mapping[str, Any] | None] | None = None) -> None:
    """Give a context, with the `request_id`, to each transaction in which a request of a Flask app writes.

    The id is that of the header X-Request-ID, or a new one. It is in `flask.g.cdc_request_id`. `context` returns more
    values of the current request. It is called before the first write.
    """
    flask: Any = import_module("flask")  # installed, because `app` is a Flask app
    g, request = flask.g, flask.request

    def begin_request() -> None:
        request_id = g.cdc_request_id = request_id_of(request.headers.get("X-Request-ID"))

        def values() -> dict[str, Any]:
            return {"request_id": request_id, **((context() if context else None) or {})}

        g.cdc_actor = begin(values)

    def end_request(_error: BaseException | None) -> None:
        if (token := g.pop("cdc_actor", None)) is not None:
            end(token)

    app.before_request(begin_request)
    app.teardown_request(end_request)
