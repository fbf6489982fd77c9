"""A Celery or kombu that is too old for a worker, installed by force: refused in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["celery", "kombu"])
def test_a_worker_refuses_an_older_version_in_words(package: str, tmp_path: Path) -> None:
    installed = tmp_path / f"{package}-5.2.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 5.2.0\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    worker = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "cdc_tasks", "worker"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert worker.returncode
    assert f"does not run with {package} 5.2.0" in worker.stderr
    assert "pip install 'celery>=5.4,<5.8' 'kombu>=5.3.4,<5.8'" in worker.stderr
    assert "Traceback" not in worker.stderr
