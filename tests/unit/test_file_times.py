"""Which files of a binlog have what was committed at a time."""

from __future__ import annotations

from listener.mysql.client.server import LogFile
from listener.mysql.history.file_times import FileTimes

_HOUR = 3600


def _times(*created: int) -> tuple[FileTimes, list[str]]:
    asked: list[str] = []

    def created_at(name: str) -> int:
        asked.append(name)
        return created[int(name.rpartition(".")[2])]

    files = [LogFile(f"binlog.{number:06}", 100) for number in range(len(created))]
    return FileTimes(files, created_at), asked


def test_reading_begins_in_the_last_file_from_before_the_time() -> None:
    times, _ = _times(10_000, 20_000, 30_000)
    assert times.oldest == 10_001
    assert times.first(25_000.5) == "binlog.000001"
    assert times.first(29_999) == "binlog.000001"
    assert times.first(30_030) == "binlog.000001"  # clocks may differ
    assert times.first(30_100) == "binlog.000002"
    assert times.first(0) == "binlog.000000"


def test_it_ends_where_nothing_can_come_any_more() -> None:
    times, _ = _times(0, 10_000, 20_000)
    assert times.behind(9_999 - _HOUR) == "binlog.000001"
    assert times.behind(10_000 - _HOUR) == "binlog.000002"  # a statement may take long
    assert times.behind(20_000 - _HOUR) is None


def test_few_of_many_files_are_asked() -> None:
    times, asked = _times(*range(0, 1_000_000, 100))
    assert times.first(500_000) == "binlog.004999"
    assert times.behind(500_000) == "binlog.005037"
    assert len(asked) < 40
