"""Tasks that are coroutine functions: each runs to its end in its process, one at a time.

Celery calls a task's function and takes what that returns for the result. A coroutine would never run, and its task
would count as done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["close", "run"]

_runner: asyncio.Runner | None = (
    None  # of this process: what the tasks keep, such as connections, belongs to its loop
)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in this process's event loop and return its result; raise what it raises, also a time limit."""
    global _runner  # noqa: PLW0603  # one for all tasks of this process
    if _runner is None:
        _runner = asyncio.Runner()
    try:
        return _runner.run(coroutine)
    except BaseException:
        close()  # a time limit leaves the coroutine in the middle: this cancels it, and what it has started
        raise


def close() -> None:
    """Cancel what runs in this process's event loop, and close that; the next coroutine gets another one."""
    global _runner  # the same
    runner, _runner = _runner, None
    if runner is not None:
        runner.close()
