"""Message groups: tasks with the same key run one at a time, in order.

A message that belongs to a group has the group's key in its headers, no matter who sends it: the listener (`key=` of a
route), a task, or a web process (`key_headers`). The broker's transport keeps the order; for Redis see
`cdc_tasks/broker/redis/message_groups.py`.

A key is a text of up to LONGEST_KEY bytes: the group's name, a colon, and the values. Longer values are replaced by a
digest. Values may be personal data, like an e-mail address. Redis and `python -m cdc_tasks keys` contain them, as they
contain rows; logs and errors show `shown_key`, which has a digest instead.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, Literal

from cdc_tasks.changes import position_key
from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HOLD_HEADER",
    "KEY_HEADER",
    "LONGEST_KEY",
    "RANK_HEADER",
    "REPLACED_HEADER",
    "KeyValueError",
    "OnFailure",
    "bounded_key",
    "check_group",
    "group_headers",
    "headers_of_key",
    "key_headers",
    "key_of",
    "shown_key",
    "text_of_values",
]

KEY_HEADER: Final = "cdc_key"  # the key
HOLD_HEADER: Final = "cdc_key_hold"  # true: a task that gives up keeps its key until a person decides
RANK_HEADER: Final = (
    "cdc_key_rank"  # a text: waiting messages run in its order, and in the order of sending if it is equal
)
REPLACED_HEADER: Final = "cdc_key_replaces"  # of a retry: the delivery tag of the message that it replaces
LONGEST_KEY: Final = 200  # bytes

OnFailure = Literal["continue", "hold"]

_LONGEST_GROUP: Final = 100  # letters
_encode: Final = json.JSONEncoder(default=str, separators=(",", ":"), sort_keys=True).encode


class KeyValueError(CDCError):
    """A message group's name or value cannot make a key."""


def key_of(group: str, *values: Any) -> str:
    """Return the key of these values: `orders:42`, `orders:["acme",42]`; values are equal if their texts are.

    None is a value too. Values are JSON values, or have their own text (UUID, Decimal, datetime).
    Raises KeyValueError.
    """
    check_group(group)
    if not values:
        raise KeyValueError(
            f"The key of group {group!r} has no value.", hint='Write e.g. key_headers("orders", order_id).'
        )
    return bounded_key(group, _text(values[0]) if len(values) == 1 else _listed(values))


def bounded_key(group: str, text: str) -> str:
    """Return the key of a checked group and the text of its values."""
    key = f"{group}:{text}"
    if len(key) <= LONGEST_KEY and (key.isascii() or _fits(key)):
        return key
    return f"{group}:#{_digest(text)[:40]}"


def _fits(key: str) -> bool:
    try:
        return len(key.encode()) <= LONGEST_KEY
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8
        return False


def text_of_values(values: tuple[Any, ...]) -> str:
    """Return some values of a row as the text that `bounded_key` takes."""
    return _text(values[0]) if len(values) == 1 else _listed(values)


def check_group(group: object) -> None:
    """Raise KeyValueError unless this is a valid group name."""
    is_name = isinstance(group, str) and group.strip() and group.isprintable() and ":" not in group
    if not is_name or len(str(group)) > _LONGEST_GROUP:
        raise KeyValueError(
            f"group={group!r} is not a valid name of a message group.",
            hint=f'Write e.g. group="orders": up to {_LONGEST_GROUP} letters without a colon.',
        )


def key_headers(
    group: str, *values: Any, on_failure: OnFailure = "continue", position: str | None = None
) -> dict[str, Any]:
    """Return the headers that put a task into a message group.

    `task.apply_async(…, headers=key_headers("orders", order_id))`. Tasks with the same `group` and `values` run one at
    a time, in the order of sending. With `position` (a change's `RowChange.position`), waiting tasks run in the order
    of their positions. `on_failure` decides what happens after a task that gives up: with "continue" the next task of
    the key runs; with "hold" the key waits until a person has replayed or dropped the dead letter.

    Raises KeyValueError.
    """
    if on_failure not in {"continue", "hold"}:
        raise KeyValueError(
            f"on_failure={on_failure!r} is unknown.", hint='Write on_failure="continue" or on_failure="hold".'
        )
    headers = headers_of_key(key_of(group, *values), on_failure)
    if position is not None:
        headers[RANK_HEADER] = position_key(position)[1]
    return headers


def headers_of_key(key: str, on_failure: OnFailure) -> dict[str, Any]:
    """Return the headers of a message with this key."""
    return {KEY_HEADER: key, HOLD_HEADER: True} if on_failure == "hold" else {KEY_HEADER: key}


def group_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers of a message that put it into its message group."""
    found = headers or {}
    return {name: found[name] for name in (KEY_HEADER, HOLD_HEADER, RANK_HEADER) if name in found}


def shown_key(key: str) -> str:
    """Return a key as logs and errors show it: the group and a digest of the values."""
    group, _, text = key.partition(":")
    return f"{group}:#{_digest(text)[:8]}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value.__class__ is int:
        return repr(value)
    return _encode(value)


def _listed(values: tuple[Any, ...]) -> str:
    # As texts, like a single value: 42 and "42" are the same key.
    return _encode([_text(value) for value in values])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
