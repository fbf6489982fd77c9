"""A first start that sends the rows that are there, and what the listener offers after an accepted gap."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from typing import TYPE_CHECKING

from harness.waiting import at_most, wait_until
from tests.integration.test_backfill import Person, _Writers, check_sent

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.conftest import Broker, Database


def _ends(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=at_most(60))
    assert process.returncode == 0, log
    return log


def test_a_first_start_sends_each_row_once_and_an_accepted_gap_offers_the_commands(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(database, broker, tmp_path)
    rows = 400
    person.fills(rows)
    with _Writers(person, rows), person.running("run", "--backfill") as process:
        person.sees(process)
        wait_until(lambda: len(person.backfills()) == 3, what="the backfills", timeout=60)
        person.waits_for("numbered", "paired", "named")
        process.kill()
    with person.running("run", "--backfill") as process:  # the same command, as a service has it
        person.sees(process)
        person.drains()
        _ends(process)
    sent = check_sent(person)
    reads = Counter((each["table"], each["id"]) for each in sent if each["event"] == "read")
    assert set(reads.values()) == {1}
    found = person.asks("backfills")
    assert sorted(each["table"] for each in found) == ["public.named", "public.numbered", "public.paired"]
    assert {each["who"] for each in found} == {"the listener: run --backfill"}
    assert [each["command"] for each in person.asks("commands")["record"]] == ["backfill"] * 3

    # A gap.
    assert person.asks("status")["backfills_offered"] == []
    database.execute(f"SELECT pg_drop_replication_slot('{database.name}')")
    database.execute("INSERT INTO named VALUES ('in the gap', 7, 'x')")
    with person.running("run", "--accept-gap") as process:
        person.sees(process)
        wait_until(lambda: person.asks("status")["backfills_offered"], what="the offer", timeout=60)
        status = person.asks("status")
        offered = status["backfills_offered"]
        assert "rows_may_be_old" in status["alarm_codes"]
        assert sorted(offered) == [
            "python -m listener backfill public.keyless --task tests.other",
            "python -m listener backfill public.named",
            "python -m listener backfill public.numbered",
            "python -m listener backfill public.paired",
        ]
        named = next(each for each in offered if "named" in each)
        assert person.types(*shlex.split(named)[3:], "--watch").returncode == 0
        assert any((each["after"] or {}).get("name") == "in the gap" for each in person.sent())
        assert named not in person.asks("status")["backfills_offered"]
        assert person.asks("backfills", "dismiss")["done"]
        assert person.asks("status")["backfills_offered"] == []
        log = _ends(process)
    assert "backfill_offered" in log
    assert named in log
