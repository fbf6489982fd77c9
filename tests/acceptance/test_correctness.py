"""The page on correctness and the results that it is made of; `make chaos ARGS="… --record"` adds to them."""

from __future__ import annotations

import re
from dataclasses import replace
from string import Template
from typing import TYPE_CHECKING, get_args

from tests.acceptance.chaos import Target, _command
from tests.acceptance.correctness import PAGE, RESULTS, TEMPLATE, Record, add, page_of, read

if TYPE_CHECKING:
    from pathlib import Path

_RUN = Record(
    target="broker",
    source="mysql",
    broker="redis",
    date="2026-11-27",
    version="0.2.0",
    seed=7,
    attacks=200,
    changes=123_456,
    faults=2,
    seconds=3_600,
    command="make chaos ARGS='--target broker --seed 7'",
)


def test_the_page_says_what_the_results_say() -> None:
    assert PAGE.read_text() == page_of(read(RESULTS)), (
        "python -m tests.acceptance.correctness writes it again"
    )


def test_each_target_has_a_place_on_the_page_and_a_run() -> None:
    places = {name.removeprefix("runs_") for name in Template(TEMPLATE.read_text()).get_identifiers()}
    assert places - {"runs", "attacks", "changes", "faults", "hours", "dates"} == set(get_args(Target))
    assert {run.target for run in read(RESULTS)} == set(get_args(Target))


def test_a_run_is_added_and_the_same_command_again_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "correctness" / "results.json"
    add(_RUN, path)
    add(replace(_RUN, seed=8, command="make chaos ARGS='--target broker --seed 8'"), path)
    add(replace(_RUN, faults=0, date="2026-11-28"), path)
    assert [(run.seed, run.faults) for run in read(path)] == [(8, 2), (7, 0)]


def test_faults_that_were_found_are_on_the_page() -> None:
    page = page_of([_RUN])
    assert "**1 runs, 200 attacks, 123,456 changes, 1.0 hours, 2026-11-27: 2 faults.**" in page
    assert re.search(r"\| MySQL, Redis \| 200 \| 123,456 \| 2 \| 60\.0 \| 0\.2\.0, 2026-11-27 \|", page)
    assert "No run of it is kept." in page


def test_the_command_of_a_run_has_its_seed_and_keeps_nothing() -> None:
    again = "make chaos ARGS='--target broker --seed 7'"
    assert _command(["--target", "broker", "--record"], 7) == again
    assert _command(["--target", "broker", "--record", "--seed", "7"], 7) == again
