"""No change has the context of another transaction; the long form is `python -m tests.acceptance.attribution`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.attribution import Attribution

if TYPE_CHECKING:
    from harness.embedded_servers import ValkeyServer
    from tests.acceptance.attribution import Source
    from tests.conftest import Broker


@pytest.mark.parametrize("source", ["pgoutput", "mariadb"])
def test_nothing_is_attributed_to_the_wrong_transaction(
    source: Source, request: pytest.FixtureRequest, valkey_server: ValkeyServer, broker: Broker
) -> None:
    database = request.getfixturevalue("database" if source == "pgoutput" else "mariadb_database")
    broker.client.flushdb()
    report = Attribution(database, valkey_server.url, source, seed=7).run(240, kills=2)
    assert not report.wrong, report.wrong[:5]
    assert report.committed > 150
    assert report.rows > 500
