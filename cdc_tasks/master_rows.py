"""Rows on their way into the master cache: JSON in pieces, so that memory does not grow with the table."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

import orjson

from cdc_tasks import cache

__all__ = ["JsonArray", "as_json"]

_PIECE = 1 << 20  # bytes


class JsonArray:
    """A JSON array that is written to a key of Redis piece by piece; complete after `close`."""

    def __init__(self, key: str, *, ttl: int) -> None:
        """`ttl`: seconds after which Redis drops the key, unless somebody takes it over."""
        self._key = key
        self._ttl = ttl
        self._pending = bytearray(b"[")
        self._offset = 0  # where the next piece goes: a piece that is sent twice lands in the same place
        self._is_first = True

    def append(self, row: dict[str, Any]) -> None:
        if not self._is_first:
            self._pending += b","
        self._is_first = False
        self._pending += as_json(row)
        if len(self._pending) >= _PIECE:
            self._flush()

    def close(self) -> None:
        self._pending += b"]"
        self._flush()

    def _flush(self) -> None:
        with cache.errors_translated(), cache.client().pipeline() as pipeline:
            pipeline.setrange(self._key, self._offset, bytes(self._pending))
            pipeline.expire(self._key, self._ttl)
            pipeline.execute()
        self._offset += len(self._pending)
        self._pending.clear()


def as_json(row: dict[str, Any]) -> bytes:
    """Return the row as the changes have it: numeric as text, times as ISO 8601 in UTC, bytes as base64."""
    try:
        return orjson.dumps(row, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits, inside a JSON column
        return json.dumps(row, default=_plain, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    return str(value)
