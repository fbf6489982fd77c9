"""Become a server that dies with the process that started it, as another user if asked.

Run by path, in a bare interpreter, so that it costs milliseconds:

    python -I -S launch.py PARENT_PID SIGNAL UID GID COMMAND…     (UID and GID -1: stay who we are)

A function between fork and exec could do the same, but not safely in a program that has threads.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Change user, tie our life to the parent's, then become the command."""
    parent, signal_number, uid, gid = map(int, sys.argv[1:5])
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which would clear it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it died before we could ask to be told
        sys.exit(1)
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
