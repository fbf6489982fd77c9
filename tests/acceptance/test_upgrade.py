"""This version goes on with what version 0.1.0 has left behind.

`make chaos ARGS="--target upgrade"` runs that version, and stops it in the middle of traffic.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.upgrade import Upgrade

_CHECKOUT = Path(__file__).resolve().parents[2]
_LEFT = Path(__file__).with_name("left_by_0_1_0.json")


def test_nothing_that_version_0_1_0_has_left_is_lost_or_done_twice() -> None:
    with Upgrade(_CHECKOUT, seed=0) as upgrade:
        upgrade.restore(json.loads(_LEFT.read_text()))
        assert upgrade.finish() == []
