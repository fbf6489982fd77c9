"""The reference is made from the code: `make reference`."""

from __future__ import annotations

import re

import pytest

from reference.pages import PAGES, problems, stale
from reference.sources import CHECKOUT, events, modules, public_names


def test_what_is_committed_is_what_the_code_makes() -> None:
    assert [path.relative_to(CHECKOUT).as_posix() for path in stale()] == [], "run: make reference"


def test_all_events_codes_settings_and_parameters_have_words_and_no_others() -> None:
    assert problems() == []


def test_every_logger_of_structlog_is_found() -> None:
    assert [each.path for each in modules() if any(each.calls("get_logger")) and not each.has_log] == [
        CHECKOUT
        / "cdc_tasks"
        / "broker"
        / "redis"
        / f"{name}.py"  # kombu's loggers: their lines are no events
        for name in ("later", "older_kombu", "transport", "unacknowledged", "wake_up")
    ]


def test_events_and_keys_are_snake_case() -> None:
    for package in ("listener", "cdc_tasks"):
        for name, event in events(package).items():
            assert [each for each in (name, *event.keys) if not re.fullmatch(r"[a-z][a-z0-9_]*", each)] == []


def test_the_listener_has_the_names_of_its_router() -> None:
    assert public_names("listener") == public_names("listener.router")


@pytest.mark.parametrize(
    "anchor", ["error-codes", "finding-codes", "alarm-codes", "log-events", "public-interface"]
)
def test_the_anchors_to_which_other_pages_and_texts_lead_are_there(anchor: str) -> None:
    page = (CHECKOUT / "docs" / "reference.md").read_text()
    assert f"\n## {anchor.replace('-', ' ').capitalize()}\n" in page


def test_every_page_is_in_the_navigation() -> None:
    nav = (CHECKOUT / "mkdocs.yml").read_text()
    for path in PAGES:
        assert f": {path.relative_to(CHECKOUT / 'docs').as_posix()}\n" in nav
