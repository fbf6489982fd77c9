"""What a newcomer meets when the machine lacks something: a word that helps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.compose import CHECKOUT


def test_a_python_that_is_too_old_is_named_with_the_hint(tmp_path: Path) -> None:
    python = _program(tmp_path / "python", '[ "$1" = --version ] && echo Python 3.9.2 && exit; exit 1')
    result = _run("make-venv", tmp_path / "venv", "dev", PYTHON=python)
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "is Python 3.9.2" in result.stderr
    assert "make PYTHON=" in result.stderr


def test_a_python_without_venv_is_named_with_the_hint(tmp_path: Path) -> None:
    script = 'case "$*" in *ensurepip*) exit 1;; --version) echo Python 3.11.2;; esac'
    result = _run("make-venv", tmp_path / "venv", "dev", PYTHON=_program(tmp_path / "python", script))
    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr


def test_a_machine_without_apt_is_told_which_tests_need_what(tmp_path: Path) -> None:
    for program in ("bash", "env", "tail", "cut", "sort", "id"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    result = _run("install-test-servers", PATH=str(tmp_path), CDC_TEST_REDIS_SERVER="/opt/redis-server")
    assert result.returncode == 0
    assert "CDC_TEST_CHROMIUM" in result.stderr
    assert "CDC_TEST_REDIS_SERVER" not in result.stderr
    assert _run("install-test-servers", PATH=str(tmp_path), CI="true").returncode == 1


def _run(script: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CI": "", **variables}
    command = ["/bin/bash", str(CHECKOUT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
