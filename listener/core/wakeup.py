"""Ending a wait from a signal handler or another thread."""

from __future__ import annotations

import os
from select import select

__all__ = ["Wakeup"]


class Wakeup:
    """A pipe that `select` watches together with a socket: once set, every wait on it ends immediately."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self.is_set = False

    def fileno(self) -> int:
        """Return what `select` waits on."""
        return self._reader

    def set(self) -> None:
        """End every wait, now and later; may be called from a signal handler."""
        if not self.is_set:
            self.is_set = True
            os.write(self._writer, b"!")

    def clear(self) -> None:
        """Reset it, so that the next wait blocks. It must not be set at the same time."""
        if self.is_set:
            os.read(self._reader, 1)
            self.is_set = False

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds`; return whether it is set."""
        select([self._reader], [], [], seconds)
        return self.is_set

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
