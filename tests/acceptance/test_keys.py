"""Order by key while workers and the broker are killed; the long form is `make chaos ARGS="--target keys"`."""

from __future__ import annotations

from tests.acceptance.key_notes import Note, faults_in
from tests.acceptance.keys import KeyAttacks


def test_tasks_of_each_key_begin_in_order_and_never_overlap_while_workers_and_the_broker_are_killed() -> None:
    with KeyAttacks(seed=26, changes=800, keys=25, workers=2) as attacks:
        assert attacks.run(worker_kills=2, broker_kills=1) == []


def _notes(*lines: str) -> list[Note]:
    return [Note.parse(line.encode()) for line in lines]


def test_the_checker_finds_what_is_wrong() -> None:
    expected = {1: "a", 2: "a", 3: "b"}
    well = [
        "begin a 1 x",
        "fail a 1 x",
        "begin a 1 y",
        "begin b 3 u",
        "end b 3 u",
        "begin a 1 z",
        "end a 1 z",
    ]
    well += ["begin a 2 w", "end a 2 w"]
    assert faults_in(_notes(*well), expected) == []
    assert faults_in(_notes(*well[:-1]), expected) == ["2 of a had no effect"]
    assert faults_in(_notes(*well, "begin a 1 v", "end a 1 v"), expected) == ["a: 1 began after 2"]
    early = [
        "begin a 1 x",
        "begin a 2 y",
        "end a 2 y",
        "begin b 3 u",
        "end b 3 u",
        "begin a 2 z",
        "end a 1 x",
    ]
    assert faults_in(_notes(*early), expected) == [
        "a: 2 began before 1 was done",
        "a: 1 was still running when the next run had begun",
    ]
