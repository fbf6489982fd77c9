"""Malformed messages become dead letters, so that no worker stops and no message is lost.

Anyone who can write to the broker can send them. Celery would drop some and log their content. Others would stop the
worker; then the message would go back to its queue, and stop the next worker too.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from celery.utils.time import maybe_iso8601

from cdc_tasks.broker.delivery_marks import without_marks
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "SHAPE_ERRORS",
    "MalformedMessageError",
    "check_body",
    "check_envelope",
    "check_headers",
    "check_mapping",
    "keep_malformed",
]

# Errors of code that gets a value of an unexpected shape.
SHAPE_ERRORS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_TASK: Final = "malformed message"


class MalformedMessageError(CDCError):
    """This message is not a valid task message."""


def keep_malformed(raw: bytes | str, *, reason: str, queue: str | None = None) -> None:
    """Keep a message unchanged, in base64, in the dead letter's `raw`. Raises CacheAwayError if Redis is down.

    A worker may die before it acknowledges the message. A second delivery has the same id, so it makes the same dead
    letter.
    """
    content = raw.encode(errors="surrogatepass") if isinstance(raw, str) else raw
    dead_letters.keep(
        dead_letters.DeadLetter(
            id=f"malformed-{sha256(_identity(content)).hexdigest()[:16]}",
            task=_TASK,
            args=[],
            kwargs={},
            queue=queue,
            error=f"{MalformedMessageError.__name__}: {reason}",
            traceback="",
            failed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            worker=None,
            raw=b64encode(content).decode(),
        )
    )


def _identity(content: bytes) -> bytes:
    """Return the part of a message that is the same in each delivery."""
    try:
        message = json.loads(content)
        if not isinstance(message, dict):
            return content
        for holder, name in ((message, "headers"), (message.get("properties"), "delivery_info")):
            if isinstance(holder, dict) and isinstance(holder.get(name), dict):
                holder[name] = without_marks(holder[name])
        return json.dumps(message, sort_keys=True).encode()
    except SHAPE_ERRORS:
        return content


def check_envelope(message: Any) -> None:
    """Raise MalformedMessageError if kombu's Redis transport could not deliver this message."""
    _expect(message, "the message", Mapping)
    _expect(message.get("headers"), "headers", Mapping)
    properties = _expect(message.get("properties"), "properties", Mapping)
    _expect(properties.get("delivery_tag"), "delivery_tag", str)
    delivery_info = _expect(properties.get("delivery_info"), "delivery_info", Mapping)
    for name in ("exchange", "routing_key"):
        _expect(delivery_info.get(name), name, str)
    _expect(message.get("body"), "body", str)
    priority = delivery_info.get("priority", properties.get("priority"))
    if priority is not None:
        _expect(priority, "priority", int)


def check_headers(headers: Mapping[str, Any]) -> None:
    """Raise MalformedMessageError if these headers of a task (protocol 2) would stop Celery's worker."""
    for name in ("id", "task"):
        _expect(headers.get(name), name, str)
    for name, check in _HEADERS.items():
        if headers.get(name) is not None:
            check(name, headers[name])


def check_mapping(headers: Any) -> Mapping[str, Any]:
    """Return the headers; raise MalformedMessageError if they are not a mapping."""
    found: Mapping[str, Any] = _expect(headers, "headers", Mapping)
    return found


def check_body(body: Any) -> None:
    """Raise MalformedMessageError unless the body is a list of arguments, keywords and Celery's own data."""
    parts = _expect(body, "the body", Sequence)
    if len(parts) != 3:
        raise MalformedMessageError(f"The body has {len(parts)} parts instead of 3.")
    arguments, keywords, embedded = parts
    _expect(arguments, "the arguments", Sequence)
    _expect(keywords, "the keywords", Mapping)
    if embedded is not None:
        _expect(embedded, "the third part of the body", Mapping)


def _expect(value: Any, name: str, kind: type) -> Any:
    is_text_for_a_list = kind is Sequence and isinstance(value, str | bytes)
    if not isinstance(value, kind) or is_text_for_a_list or (kind is int and isinstance(value, bool)):
        raise MalformedMessageError(f"{name} is {type(value).__name__} instead of {kind.__name__}.")
    return value


def _is_text(name: str, value: Any) -> None:
    _expect(value, name, str)


def _is_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise MalformedMessageError(f"{name} is not a number of seconds or of retries.")


def _are_limits(name: str, value: Any) -> None:
    if len(_expect(value, name, Sequence)) != 2:
        raise MalformedMessageError(f"{name} does not have two parts.")
    for each in value:
        if each is not None:
            _is_number(name, each)


def _is_time(name: str, value: Any) -> None:
    try:
        maybe_iso8601(value)
    except SHAPE_ERRORS:
        raise MalformedMessageError(f"{name} is not a time.") from None


def _is_mapping(name: str, value: Any) -> None:
    _expect(value, name, Mapping)


def _is_list(name: str, value: Any) -> None:
    _expect(value, name, Sequence)


_HEADERS: Final[dict[str, Callable[[str, Any], None]]] = {
    "argsrepr": _is_text,
    "eta": _is_time,
    "expires": _is_time,
    "group": _is_text,
    "group_index": _is_number,
    "kwargsrepr": _is_text,
    "lang": _is_text,
    "origin": _is_text,
    "parent_id": _is_text,
    "retries": _is_number,
    "root_id": _is_text,
    "shadow": _is_text,
    "stamped_headers": _is_list,
    "stamps": _is_mapping,
    "timelimit": _are_limits,
}
