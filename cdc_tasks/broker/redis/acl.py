"""The permissions that a Redis user needs, checked at start-up.

Without this check, a missing permission would only show in the middle of a task. So each needed command runs once, on
keys of the check or without changing anything. The result has the `ACL SETUSER` that grants the refused permissions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

import redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Missing", "missing_for_listener", "missing_for_worker"]

_USER: Final = re.compile(r"[Uu]ser (?P<name>\S+) has no permissions")


class Missing(NamedTuple):
    """The permissions that a user lacks."""

    found: str
    hint: str  # the command that grants them


class _Probe(NamedTuple):
    words: tuple[Any, ...]
    pattern: str = "cdc:*"  # of its keys, without the prefix


def missing_for_worker(client: redis.Redis, queues: Iterable[str], *, prefix: str = "") -> Missing | None:
    """Return the permissions that this user lacks for a worker, None if it has all; raise redis-py's errors."""
    own = f"{prefix}cdc:probe:{uuid4().hex}"
    probes = [
        *_of_keys(own),
        _Probe(("BRPOPLPUSH", own, f"{own}:2", 1)),
        _Probe(("EVAL", "return redis.call('HINCRBY', KEYS[1], 'a', 1)", 1, f"{own}:3")),
        *_of_what_waits(own),
        *_of_message_groups(own),
        _Probe(("EVALSHA", "0" * 40, 0)),
        _Probe(("PUBLISH", "/0.cdc.probe", ""), "&*"),
        *_of_queues(queues, prefix),
    ]
    try:
        return _try(client, probes, prefix)
    finally:
        _remove(client, [own, *(f"{own}:{number}" for number in (2, 3, 4, 5, 7))])


def missing_for_listener(client: redis.Redis, queues: Iterable[str], *, prefix: str = "") -> Missing | None:
    """Return the permissions that this user lacks for a listener; see `missing_for_worker`."""
    own = f"{prefix}cdc:probe:{uuid4().hex}"
    probes = [
        *_of_keys(own),
        _Probe(("EVAL", "return redis.call('HINCRBY', KEYS[1], 'a', 1)", 1, f"{own}:3")),
        *_of_message_groups(own),
        _Probe(("LREM", own, 0, "y")),  # a person's command that was done
        _Probe(("LTRIM", own, 0, -1)),
        _Probe(("WATCH", own)),
        _Probe(("UNWATCH",)),
        *_of_queues(queues, prefix),
    ]
    try:
        return _try(client, probes, prefix)
    finally:
        _remove(client, [own, *(f"{own}:{number}" for number in (3, 4, 5, 7))])


def _of_keys(own: str) -> list[_Probe]:
    hashed, ranked = f"{own}:4", f"{own}:5"
    commands: list[tuple[Any, ...]] = [
        ("PING",),
        ("LPUSH", own, "x"),
        ("RPUSH", own, "x"),
        ("LRANGE", own, 0, 0),
        ("TYPE", own),
        ("EXISTS", own),
        ("HSET", hashed, "a", "1"),
        ("HINCRBY", hashed, "a", 1),
        ("HGET", hashed, "a"),
        ("HMGET", hashed, "a"),
        ("HGETALL", hashed),
        ("HVALS", hashed),
        ("HLEN", hashed),
        ("HDEL", hashed, "b"),
        ("ZADD", ranked, 1, "x"),
        ("ZREVRANGE", ranked, 0, 0),
        ("ZCARD", ranked),
        ("ZREM", ranked, "y"),
        ("EXPIRE", own, 60),
        ("MULTI",),
        ("EXEC",),
    ]
    return [_Probe(words) for words in commands]


def _of_what_waits(own: str) -> list[_Probe]:
    """Return the other commands that `cdc_tasks/broker/redis/later.py` needs."""
    hashed, ranked = f"{own}:4", f"{own}:5"
    commands: list[tuple[Any, ...]] = [
        ("TIME",),
        ("DEL", f"{own}:6"),
        ("RPOP", f"{own}:6"),
        ("LPOS", f"{own}:6", "x"),
        ("LLEN", f"{own}:6"),
        ("EXPIRE", hashed, 60),
        ("ZSCORE", ranked, "x"),
        ("ZRANGE", ranked, 0, 0),
        ("ZRANGEBYSCORE", ranked, 0, 0),
        ("ZREMRANGEBYRANK", ranked, 5, 5),
    ]
    return [_Probe(words) for words in commands]


def _of_message_groups(own: str) -> list[_Probe]:
    """Return the other commands that `cdc_tasks/broker/redis/message_groups.py` needs."""
    commands: list[tuple[Any, ...]] = [
        ("TIME",),
        ("RPOP", f"{own}:6"),
        ("INCR", f"{own}:7"),
        ("SADD", f"{own}:8", "x"),
        ("SREM", f"{own}:8", "x"),
        ("SSCAN", f"{own}:8", 0),
        ("ZRANGE", f"{own}:5", 0, 0),
        ("ZRANGEBYLEX", f"{own}:5", "-", "+"),
    ]
    return [_Probe(words) for words in commands]


def _of_queues(queues: Iterable[str], prefix: str) -> list[_Probe]:
    """Return commands that read and write the queues, and change nothing."""
    binding = "_kombu.binding."
    probes = [_Probe(("SREM", f"{prefix}{binding}cdc.probe", "x"), f"{binding}*")]
    for queue in queues:
        probes += [
            _Probe(("LLEN", f"{prefix}{queue}"), queue),
            _Probe(("LTRIM", f"{prefix}{queue}", 0, -1), queue),
        ]
    return probes


def _try(client: redis.Redis, probes: Sequence[_Probe], prefix: str) -> Missing | None:
    rights, texts = dict[str, None](), list[str]()
    with client.client() as connection:  # type: ignore[no-untyped-call]  # one connection: MULTI and WATCH belong to it
        for probe in probes:
            try:
                connection.execute_command(*probe.words)
            except NoPermissionError as error:
                texts.append(str(error))
                rights[_right(probe, str(error), prefix)] = None
            except ResponseError:
                pass  # the command is permitted; it failed for another reason
    if not rights:
        return None
    named = next((match["name"] for text in texts if (match := _USER.search(text))), None)
    user = named or client.get_connection_kwargs().get("username") or "default"
    return Missing(
        found=f"the user {user} lacks {', '.join(rights)}", hint=f"ACL SETUSER {user} {' '.join(rights)}"
    )


def _right(probe: _Probe, text: str, prefix: str) -> str:
    """Return the ACL rule that grants it: for the command, or, if the command is permitted, for its keys or channel."""
    if "command" in text:
        return f"+{str(probe.words[0]).lower()}"
    return probe.pattern if probe.pattern.startswith("&") else f"~{prefix}{probe.pattern}"


def _remove(client: redis.Redis, keys: Sequence[str]) -> None:
    try:
        client.delete(*keys)
    except RedisError:  # the missing permission is reported; the keys expire, or were never made
        return
