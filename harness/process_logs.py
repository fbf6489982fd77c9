"""The ends of the logs of workers and listeners: a failing test shows them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ends_of_logs", "forget_ended", "log_of"]

_LINES: Final = 60
_MOST_ENDED: Final = 6


class _Log(NamedTuple):
    name: str
    read: Callable[[], str]


_running: dict[int, _Log] = {}
_ended: deque[tuple[str, str]] = deque(maxlen=_MOST_ENDED)


def log_of(name: str, pid: int, read: Callable[[], str]) -> Callable[[], None]:
    """Register a process with a log; call the returned function before its log is deleted."""
    log = _running[id(read)] = _Log(f"{name} {pid}", read)

    def ended() -> None:
        if _running.pop(id(read), None) is not None:
            _ended.append((log.name, _end(log)))

    return ended


def forget_ended() -> None:
    """Drop the processes that have ended: another test begins."""
    _ended.clear()


def ends_of_logs() -> Iterator[tuple[str, str]]:
    """Yield name and last lines of the logs, first of the processes that have ended."""
    yield from _ended
    for log in _running.values():
        yield log.name, _end(log)


def _end(log: _Log) -> str:
    try:
        return "\n".join(log.read().splitlines()[-_LINES:])
    except (OSError, ValueError) as error:
        return f"(cannot be read: {error})"
