"""Fixtures for the tests of tasks: a help desk, a stub of the services, a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc_tasks import cache, db
from cdc_tasks.celery import app
from cdc_tasks.notify import sealed_secrets
from cdc_tasks.settings import worker_settings
from harness.worker import Worker
from tests.support.helpdesk import HelpDesk
from tests.support.social_stub import SocialStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker, Database


@pytest.fixture
def social() -> Iterator[SocialStub]:
    with SocialStub() as stub:
        yield stub


@pytest.fixture
def helpdesk(database: Database, broker: Broker, social: SocialStub) -> HelpDesk:
    return HelpDesk.open(database, broker, social)


@pytest.fixture
def worker(helpdesk: HelpDesk) -> Iterator[Worker]:
    with Worker(helpdesk.environment) as running:
        yield running


@pytest.fixture
def in_process(helpdesk: HelpDesk, monkeypatch: pytest.MonkeyPatch) -> Iterator[HelpDesk]:
    """Give this process the settings, database and cache of a worker."""
    for name, value in helpdesk.environment.items():
        monkeypatch.setenv(name, value)
    _forget()
    app.loader.import_default_modules()
    app.conf.broker_url = helpdesk.broker.url
    yield helpdesk
    db.engine().dispose()
    cache.client().close()
    _forget()


def _forget() -> None:
    for cached in (worker_settings, db.engine, cache.client, sealed_secrets._keys):
        cached.cache_clear()
