"""Third-party programs in their own virtual environments, in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["python_with"]


def python_with(name: str, requirements: Sequence[str]) -> Path:
    """Return the interpreter of the environment `name`, which the first call creates with these packages."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "cdc-tasks" / name
    python, done = directory / "bin" / "python", directory / "installed"
    if not done.exists() or done.read_text() != "\n".join(requirements):
        venv.create(directory, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(command, check=True, stdout=sys.stderr)
        done.write_text("\n".join(requirements))
    return python
