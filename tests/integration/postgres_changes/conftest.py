"""What comes out of PostgreSQL: on each version, through each plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.postgres.source import PLUGINS, PostgresSource

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=PLUGINS, ids="-".join)
def source(request: pytest.FixtureRequest) -> Iterator[PostgresSource]:
    fixture, plugin = request.param
    with PostgresSource(request.getfixturevalue(fixture), plugin) as source:
        yield source


@pytest.fixture(params=[fixture for fixture, plugin in PLUGINS if plugin == "pgoutput"])
def pgoutput(request: pytest.FixtureRequest) -> Iterator[PostgresSource]:
    """The same through pgoutput alone: partitioned tables are not for wal2json."""
    with PostgresSource(request.getfixturevalue(request.param), "pgoutput") as source:
        yield source
