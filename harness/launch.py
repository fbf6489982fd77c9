"""Become a server that ends with the process that started it, optionally as another user.

Run it by path in a bare interpreter, which takes milliseconds:

    python -I -S launch.py PARENT_PID SIGNAL UID GID COMMAND…     (UID and GID -1: keep the user)

A function between fork and exec could do the same, but is not safe in a program with threads.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Change the user, ask the kernel to signal us when the parent dies, and become the command."""
    parent, signal_number, uid, gid = map(int, sys.argv[1:5])
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which would clear this setting.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(1)
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606 - without a shell on purpose


if __name__ == "__main__":
    main()
