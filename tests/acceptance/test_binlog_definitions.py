"""Tables are redefined while clients write and the listener is stopped and killed: all of it comes once."""

from __future__ import annotations

import os

import pytest

from tests.acceptance.binlog_definitions import disturbed

pytestmark = pytest.mark.timeout(400)

_SEED = int(os.environ.get("CDC_TEST_SEED", "20261126"))


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_what_is_committed_while_tables_are_redefined_arrives_once(kind: str) -> None:
    faults = disturbed(kind, seed=_SEED, stops=3)
    assert not faults, f"CDC_TEST_SEED={_SEED}: {faults[:10]}"
