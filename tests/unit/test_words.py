"""A number and its noun agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdc_tasks.words import counted

_CHECKOUT = Path(__file__).resolve().parents[2]
# A variable before a plural that no helper has chosen.
_FIXED_PLURAL = re.compile(
    r"\{(?!counted|_[A-Z])[^{}]*\} (?:more |other |parked |dead )?"
    r"(?:changes|tasks|tables|messages|rows|letters|secrets|problems|settings|hours|times|workers|queues)\b"
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 changes"), (1, "1 change"), (2, "2 changes"), (1234, "1,234 changes"), (1.0, "1 change")],
)
def test_a_noun_follows_its_number(number: float, text: str) -> None:
    assert counted(number, "change") == text


def test_a_phrase_follows_its_number() -> None:
    assert counted(1, "change is parked", "changes are parked") == "1 change is parked"
    assert counted(0.5, "change is parked", "changes are parked") == "0.5 changes are parked"


def test_no_text_has_a_plural_that_no_number_has_chosen() -> None:
    found = [
        f"{path.relative_to(_CHECKOUT)}: {text}"
        for room in ("cdc_tasks", "listener", "demo")
        for path in (_CHECKOUT / room).rglob("*.py")
        for text in _FIXED_PLURAL.findall(path.read_text())
    ]
    assert found == []
