"""Tasks that are coroutine functions: a process runs one at a time, to its end.

Celery calls a task's function and uses the return value as the result. A coroutine would never run, and its task would
count as done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["close", "run"]

_runner: asyncio.Runner | None = (
    None  # of this process: objects that the tasks keep, such as connections, belong to its loop
)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in this process's event loop and return its result. Raises what it raises, or a time limit."""
    global _runner  # noqa: PLW0603  # one for all tasks of this process
    if _runner is None:
        _runner = asyncio.Runner()
    try:
        return _runner.run(coroutine)
    except BaseException:
        close()  # a time limit interrupts the coroutine: this cancels it, and everything that it has started
        raise


def close() -> None:
    """Cancel everything in this process's event loop, and close it; the next coroutine gets a new one."""
    global _runner  # the same
    runner, _runner = _runner, None
    if runner is not None:
        runner.close()
