"""Where a listener continues after a checkpoint, and where it refuses to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from listener.core.source import GapError
from listener.postgres.client.timeline import ResumePoint, Timeline, resume
from listener.postgres.codec.decoder import Decoder, OtherLogError
from listener.postgres.log.position import Era, Eras, LastPublished, WALCheckpoint, WALPosition

if TYPE_CHECKING:
    from listener.postgres.codec.change import WALChange
    from listener.postgres.codec.decoder import Begin, Commit

LAST = LastPublished(0x100, 77, 3)
CHECKPOINT = WALCheckpoint(Era(), WALPosition(0x1FF, 0), LAST)  # read up to 0/200
SERVER = Timeline("c0ffee", 1, 0x1000)
PROMOTED = Timeline("c0ffee", 3, 0x9000, {1: 0x1000, 2: 0x2000})


def going_on(
    checkpoint: WALCheckpoint = CHECKPOINT,
    server: Timeline = SERVER,
    *,
    confirmed: int = 0x200,
    advanced_to: int = 0,
) -> ResumePoint:
    return resume(str(checkpoint), server, slot="cdc", confirmed=confirmed, advanced_to=advanced_to)


@pytest.mark.parametrize(
    ("checkpoint", "text"),
    [
        (WALCheckpoint(Era(), WALPosition(0x1FF, 0), LAST), "0/1FF:100-4D-3:0"),
        (WALCheckpoint(Era(0, 2), WALPosition(0x500000001, 9), LAST), "2@5/1:100-4D-3:9"),
        (WALCheckpoint(Era(4, 1), WALPosition(8, 0), LastPublished()), "4.1@0/8:0-0-0:0"),
    ],
)
def test_a_checkpoint_is_printed_and_parsed(checkpoint: WALCheckpoint, text: str) -> None:
    assert str(checkpoint) == text
    assert WALCheckpoint.parse(text) == checkpoint
    assert WALPosition.parse(text) == checkpoint.position


@pytest.mark.parametrize(("text", "era"), [("0/1FF:2", Era()), ("2@0/1FF:2", Era(0, 2))])
def test_a_checkpoint_of_an_earlier_version_has_no_last_change(text: str, era: Era) -> None:
    checkpoint = WALCheckpoint.parse(text)
    assert (checkpoint.era, checkpoint.position, checkpoint.label) == (era, WALPosition(0x1FF, 2), text)
    assert checkpoint.last == LastPublished(0x1FF, 0, 2)
    assert going_on(WALCheckpoint.parse("0/1FF:2"), confirmed=0x100) == ResumePoint(0, checkpoint.last)


@pytest.mark.parametrize("wrong", ["", "0/1FF", "binlog.000003:1234:5", "0/1:x-y:0", "x@0/1:0", "0/1:1-2:0"])
def test_a_text_that_is_no_checkpoint_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        WALCheckpoint.parse(wrong)


def test_what_is_not_acknowledged_is_expected_to_come_again() -> None:
    assert going_on(confirmed=0x200) == ResumePoint(0, LAST)
    assert going_on(confirmed=0x101) == ResumePoint(0, LAST)
    assert going_on(confirmed=0x100) == ResumePoint(0, LAST, is_expected=True)
    assert going_on(confirmed=8) == ResumePoint(0, LAST, is_expected=True)


def test_a_log_that_ends_before_what_was_published_is_refused() -> None:
    with pytest.raises(
        GapError, match="after the end of the database's log, 0/100: the database was restored"
    ):
        going_on(server=SERVER._replace(end=0x100), confirmed=8)
    # Where only log that did not concern us is missing, nothing is.
    assert going_on(server=SERVER._replace(end=0x180), confirmed=0x110) == ResumePoint(0, LAST)


def test_a_slot_beyond_the_checkpoint_is_a_gap_unless_this_listener_moved_it() -> None:
    assert going_on(confirmed=0x200) == ResumePoint(0, LAST)
    with pytest.raises(GapError, match="slot cdc is at 0/208, but the checkpoint at 0/1FF:0"):
        going_on(confirmed=0x208)
    assert going_on(confirmed=0x208, advanced_to=0x208) == ResumePoint(0, LAST)
    with pytest.raises(GapError, match="advanced it"):
        going_on(confirmed=0x210, advanced_to=0x208)


def test_after_a_failover_reading_goes_on_where_the_new_primary_left_the_log() -> None:
    assert going_on(server=PROMOTED) == ResumePoint(0, LAST)
    late = WALCheckpoint(Era(), WALPosition(0x1FFF, 0), LastPublished(0x1800, 77, 3))
    assert going_on(late, PROMOTED) == ResumePoint(0, LastPublished(0xFFF), lost_from=0x1000)
    idle = WALCheckpoint(Era(), WALPosition(0x1FFF, 0), LAST)  # only log that did not concern us is lost
    assert going_on(idle, PROMOTED) == ResumePoint(0, LAST)


def test_a_timeline_that_is_not_in_the_servers_history_is_refused() -> None:
    with pytest.raises(GapError, match="checkpoint 2@0/1FF:0 is after the end of the database's log, 0/1000"):
        going_on(CHECKPOINT._replace(era=Era(0, 2)))
    with pytest.raises(GapError, match=r"after the end of the database's log, 1\.3@0/9000"):
        going_on(CHECKPOINT._replace(era=Era(1, 4)), PROMOTED)


def test_the_generation_stays() -> None:
    assert going_on(CHECKPOINT._replace(era=Era(5, 1))).generation == 5


def test_each_lsn_has_the_era_of_its_timeline() -> None:
    eras = PROMOTED.eras(0)
    assert [str(eras.of(lsn)) for lsn in (0xFFF, 0x1000, 0x1FFF, 0x2000, 0x9000)] == [
        "",
        "2@",
        "2@",
        "3@",
        "3@",
    ]
    assert [str(PROMOTED.eras(7).of(lsn)) for lsn in (0xFFF, 0x2000)] == ["7.1@", "7.3@"]
    assert str(Eras().of(5)) == ""


class _Bare(Decoder):
    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | None:
        raise NotImplementedError


def test_until_the_expected_change_comes_nothing_later_is_new() -> None:
    decoder = _Bare(source="c0ffee")
    decoder.start(LAST, Eras(), is_expected=True)
    decoder.begin(0x80, 70)
    assert decoder.next_ordinal() is None
    assert decoder.awaits_last_published
    assert decoder.is_waiting(0x100)
    decoder.begin(0x100, 77)
    assert [decoder.next_ordinal() for _ in range(5)] == [None, None, None, None, 4]
    assert not decoder.awaits_last_published
    assert not decoder.is_waiting(0x2000)


@pytest.mark.parametrize(("lsn", "committed"), [(0x100, 78), (0x108, 77), (0x108, 78)])
def test_another_transaction_at_its_lsn_or_none_is_another_log(lsn: int, committed: int) -> None:
    decoder = _Bare(source="c0ffee")
    decoder.start(LAST, Eras(), is_expected=True)
    decoder.begin(0x80, 70)
    with pytest.raises(
        OtherLogError, match="last published change, at 0/100:3, is not in the database's log"
    ):
        decoder.begin(lsn, committed)
    assert decoder.awaits_last_published


def test_a_log_read_past_its_lsn_without_it_is_another_log() -> None:
    decoder = _Bare(source="c0ffee")
    decoder.start(LAST, Eras(), is_expected=True)
    with pytest.raises(OtherLogError):
        decoder.is_waiting(0x108)


def test_an_id_has_the_time_of_the_commit_and_a_position_the_era() -> None:
    decoder = _Bare(source="c0ffee")
    decoder.start(LastPublished(), PROMOTED.eras(1), is_expected=False)
    heads = []
    for lsn, committed in ((0x100, 5), (0x100, 6), (0x2000, 6)):
        decoder.begin(lsn, committed)
        heads.append((decoder.transaction.id_head, decoder.transaction.position_head))
    assert heads == [
        (b"c0ffee-100-5-", b"1.1@0/100:"),
        (b"c0ffee-100-6-", b"1.1@0/100:"),
        (b"c0ffee-2000-6-", b"1.3@0/2000:"),
    ]
