"""Order by key while workers and the broker are killed; the long form is `make chaos ARGS="--target keys"`."""

from __future__ import annotations

import random

import pytest

from tests.acceptance.key_notes import Note, faults_in, second_runs
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


def _history(seed: int) -> tuple[list[Note], dict[int, str]]:
    """Return what eight processes note that keep the order, and the key of each number; a tenth fails or is killed."""
    dice = random.Random(seed)
    expected = {number: f"k{dice.randrange(6)}" for number in range(1, 121)}
    waiting = {key: [n for n, of in expected.items() if of == key] for key in set(expected.values())}
    running: dict[str, str] = {}
    notes = []
    while any(waiting.values()):
        key = dice.choice([key for key, numbers in waiting.items() if numbers])
        number = waiting[key][0]
        if key not in running:
            running[key] = f"r{len(notes)}"
            notes.append(Note("begin", key, number, running[key]))
            continue
        run, how = running.pop(key), dice.random()
        if how < 0.1:
            notes.append(Note("fail", key, number, run) if how < 0.05 else Note("kill", "worker", 0, "-"))
            continue
        notes.append(Note("end", key, number, run))
        waiting[key].pop(0)
    return notes, expected


@pytest.mark.parametrize("seed", range(5))
def test_the_checker_finds_each_wrong_step_in_a_long_history(seed: int) -> None:
    notes, expected = _history(seed)
    assert faults_in(notes, expected) == []
    assert second_runs(notes) == 0
    ends = [place for place, note in enumerate(notes) if note.what == "end"]
    begins = [place for place, note in enumerate(notes) if note.what == "begin"]
    for place in random.Random(seed).sample(ends, 20):
        key, number, run = notes[place][1:]
        later = next((at for at in begins if at > place and notes[at].key == key), None)
        wrong = [
            [*notes[:place], *notes[place + 1 :]],  # no effect
            [*notes[:place], Note("end", "another", number, run), *notes[place + 1 :]],
        ]
        if later is not None:
            following = notes[later]
            overlapping = [*notes[:place], *notes[place + 1 : later + 1], notes[place], *notes[later + 1 :]]
            late = [*notes, Note("begin", key, number, "late"), Note("end", key, number, "late")]
            early = [*notes[:place], following, *notes[place:]]
            wrong += [overlapping, late, early]
        for each in wrong:
            assert faults_in(each, expected)
    first = next(note for note in notes if note.what == "end")
    repeated = [*notes, first._replace(what="begin", run="again"), first._replace(run="again")]
    assert faults_in(repeated, expected, may_repeat={first.number}) == []
    assert second_runs(repeated) == 1
