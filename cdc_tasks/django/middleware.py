"""Middleware for Django: the changes of a request carry who made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from django import conf
from django.db import connections
from django.db.backends.signals import connection_created
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from cdc_tasks.django.settings import database_alias
from cdc_tasks.outbox.current import Actor, acting, request_id_of, say_before, takes_back

__all__ = ["ContextMiddleware", "write_context"]


class ContextMiddleware(MiddlewareMixin):
    """Gives a context, with `user_id` and `request_id`, to each transaction in which a request writes.

    In MIDDLEWARE, anywhere after AuthenticationMiddleware: "cdc_tasks.django.ContextMiddleware". `user_id` is the
    primary key of the logged-in user. `request_id` is that of the header X-Request-ID, or a new one; it is also in
    `request.cdc_request_id`. The setting CDC_CONTEXT names a function of the request that returns other values
    instead: "shop.context:values_of" or "shop.context.values_of".

    The context is written before the first statement that writes, inside `atomic()` of the database that the listener
    reads (ATOMIC_REQUESTS counts). Outside of it each statement is its own transaction, without a context.
    """

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        super().__init__(get_response)
        named = getattr(conf.settings, "CDC_CONTEXT", None)
        self._context: Callable[[Any], Mapping[str, Any] | None] = (
            import_string(named.replace(":", ".")) if isinstance(named, str) else _values_of
        )
        write_context()

    def __call__(self, request: Any) -> Any:
        """Answer the request."""
        if self.async_mode:
            return self.__acall__(request)
        with acting(self._begun(request)):
            return self.get_response(request)

    async def __acall__(self, request: Any) -> Any:
        """Answer the request of an asynchronous server."""
        answer: Any = self.get_response
        with acting(self._begun(request)):
            return await answer(request)

    def _begun(self, request: Any) -> Callable[[], Mapping[str, Any] | None]:
        request.cdc_request_id = request_id_of(request.headers.get("X-Request-ID"))
        return lambda: self._context(request)


def _values_of(request: Any) -> dict[str, Any]:
    user = getattr(request, "user", None)
    key = user.pk if user is not None and user.is_authenticated else None
    return {"user_id": _scalar(key), "request_id": request.cdc_request_id}


def _scalar(key: Any) -> Any:
    return key if key is None or isinstance(key, int | str) else str(key)


# --- Writing it -------------------------------------------------------------------------------------------

_IDLE: Final = 0  # libpq's status of a connection without a transaction
_said: WeakKeyDictionary[Any, Actor | None] = (
    WeakKeyDictionary()
)  # the actor whose context a connection's transaction has


def write_context() -> None:
    """Add the context of the current request or task to each transaction of the watched database that writes."""
    connection_created.connect(_on_connect, dispatch_uid="cdc_tasks.context")
    for connection in connections.all(initialized_only=True):
        _watch(connection)


def _on_connect(connection: Any, **_: Any) -> None:
    _watch(connection)


def _watch(connection: Any) -> None:
    if connection.alias == database_alias() and _say not in connection.execute_wrappers:
        connection.execute_wrappers.append(_say)


def _say(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Mapping[str, Any]) -> Any:  # noqa: FBT001  # Django's
    connection = context["connection"]
    text = sql if isinstance(sql, str) else str(sql)
    if not connection.in_atomic_block or takes_back(text):
        _said.pop(connection, None)
    elif (said := say_before(text, connection, _sayer(connection))) is not None:
        _remember(connection, said)
    return execute(sql, params, many, context)


def _sayer(connection: Any) -> Actor | None:
    """Return the actor whose context the connection's transaction has."""
    if connection.vendor == "postgresql":
        begins = connection.connection.info.transaction_status == _IDLE
    else:
        begins = all(each[1] is not _mark for each in connection.run_on_commit)
    return None if begins else _said.get(connection)


def _remember(connection: Any, actor: Actor) -> None:
    if connection.vendor != "postgresql" and all(each[1] is not _mark for each in connection.run_on_commit):
        connection.on_commit(_mark)  # Django drops it with the transaction, or with the savepoint
    _said[connection] = actor


def _mark() -> None:
    """Do nothing: while this callback is registered, the transaction has its context."""
