"""The interpreter that `warm_python.py` forks from. Each request on its socket becomes a process.

It is a separate program: nothing of the project is loaded here.
"""

from __future__ import annotations

import array
import builtins
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

_MODULES = (
    "celery.apps.worker celery.bin.celery celery.concurrency.prefork celery.fixups.django celery.worker.consumer "
    "cryptography.fernet kombu.transport.pyamqp kombu.transport.redis orjson psycopg2.extras pydantic_settings "
    "pymsteams pymysql pymysqlreplication requests rich.live rich.table slack_sdk sqlalchemy.orm "
    "sqlalchemy.dialects.postgresql.psycopg2 structlog typer"
)
_PR_SET_PDEATHSIG = 1  # prctl(2)

Job = tuple[dict[str, Any], list[int]]  # the descriptors of the standard streams and of the reports


def main() -> None:
    """Load the modules, fork for each request, and run the requested module in the fork."""
    for name in _MODULES.split():
        import_module(name)
    gc.collect()
    gc.freeze()  # a fork need not look at what is here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the watching ones
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        job = _serve(requests)
    if job is not None:
        _become(*job)


def _serve(requests: socket.socket) -> Job | None:
    """Return the job in each fork, and None when no more requests come."""
    while True:
        text, ancillary, *_ = requests.recvmsg(1 << 20, socket.CMSG_SPACE(16))
        if not text:
            return None
        descriptors = array.array("i", ancillary[0][2])
        if os.fork() == 0:
            _die_with_parent()
            if not _watch(descriptors[-1]):
                return json.loads(text), list(descriptors)
        for each in descriptors:
            os.close(each)


def _watch(reports: int) -> bool:
    """Fork again, and return False there; report the process's id and its exit status, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        return False
    os.setsid()  # so that the terminal's signals do not reach this process
    os.write(reports, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(reports, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Run a module as `python -m` does."""
    os.setsid()
    _die_with_parent()
    for stream, descriptor in enumerate(descriptors[:-1]):
        os.dup2(descriptor, stream)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    before = request["command"].index("-m")
    if before > 1:
        _filter_warnings(request["command"][before - 1])
    module, *arguments = request["command"][before + 1 :]
    sys.path[0] = str(Path.cwd())
    sys.argv[1:] = arguments
    sys.modules.pop("__main__")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _filter_warnings(option: str) -> None:
    """Do the same as the interpreter's `-W action::category`."""
    action, _, category = option.split(":")
    warnings.simplefilter(action, getattr(builtins, category))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
