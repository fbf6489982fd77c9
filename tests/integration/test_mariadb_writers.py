"""Several servers write in one domain of MariaDB's: numbers that do not ascend lose nothing, and repeat nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc_tasks.changes import position_key
from harness.given_mysql import MariaDBServer
from harness.waiting import wait_until
from listener.core.source import GapError
from listener.mysql.log.position import BinlogPosition
from tests.support.mysql.source import MySQLDatabase, NumberSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.changes import Change

_REPLICA = ("--log-slave-updates=ON", "--skip-slave-start")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[MySQLDatabase, MySQLDatabase]]:
    """The database `own` on two servers, each the other's replica."""
    with (
        MariaDBServer(arguments=_REPLICA) as one,
        MariaDBServer(arguments=(*_REPLICA, "--server-id=2")) as two,
    ):
        servers = [MySQLDatabase(name="mysql", server=each) for each in (one, two)]
        for server in servers:
            server.execute("RESET MASTER")
        servers[0].execute("CREATE DATABASE own")
        for server, source in ((servers[1], one), (servers[0], two)):
            server.execute(
                f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={source.port}, MASTER_USER='root',"
                " MASTER_USE_GTID=slave_pos",
                "START SLAVE",
            )
        yield MySQLDatabase(name="own", server=one), MySQLDatabase(name="own", server=two)


@pytest.fixture
def own_server() -> Iterator[MariaDBServer]:
    with MariaDBServer() as server:
        yield server


def follows(database: MySQLDatabase, *, other: MySQLDatabase) -> None:
    """Wait until one has what the other has logged."""
    wanted = last_of_each_server(other)

    def has_it() -> bool:
        found = last_of_each_server(database)
        return all(found.get(server, 0) >= number for server, number in wanted.items())

    wait_until(has_it, what=f"{wanted} at the other server", timeout=30)


def last_of_each_server(database: MySQLDatabase) -> dict[str, int]:
    """Return the greatest number in the log by domain and server."""
    gtids = str(database.fetch("SELECT @@global.gtid_binlog_state")[0][0]).split(",")
    return {head: int(number) for head, _, number in (gtid.rpartition("-") for gtid in gtids)}


def write_in_turn(one: MySQLDatabase, two: MySQLDatabase, table: str) -> None:
    """Let the log of `one` have the numbers 1, 2, 3 … of a table, whose GTIDs do not ascend."""
    two.execute("STOP SLAVE")
    one.execute(*(f"INSERT INTO {table} VALUES ({number})" for number in range(1, 20)))
    two.execute(
        *(f"INSERT INTO {table} VALUES ({number})" for number in (20, 21))
    )  # 0-2-3: it has not seen ours
    follows(one, other=two)
    one.execute(f"INSERT INTO {table} VALUES (22)")
    two.execute("START SLAVE")
    follows(two, other=one)


def numbers_of(changes: list[Change]) -> list[int]:
    return [each.row["id"] for each in changes]


def test_what_two_servers_write_comes_once_wherever_a_restart_is(
    pair: tuple[MySQLDatabase, MySQLDatabase],
) -> None:
    one, two = pair
    with NumberSource(one, name="restarts") as source:
        one.execute("CREATE TABLE restarts (id int PRIMARY KEY)")
        follows(two, other=one)
        source.watch("restarts", batch_size=1)
        write_in_turn(one, two, "restarts")
        every = list(range(1, 23))
        changes, positions = [], [source.position]
        while len(changes) < len(every):
            changes += source.changes(1)
            positions.append(source.position)
        gtids = [each.position for each in changes]
        numbers = [int(each.partition("@")[0].split(":")[0].rpartition("-")[2]) for each in gtids]
        assert numbers != sorted(numbers), gtids
        assert numbers_of(changes) == every
        keys = [position_key(each.position) for each in changes]
        assert keys == sorted(set(keys))
        assert len({each.id for each in changes}) == len(every)
    for number in (0, 18, 19, 20, 21, 22):
        with NumberSource(one, name="restarts", position=positions[number]) as source:
            source.watch("restarts")
            again = [*source.changes(22 - number), *source.rest()] if number < 22 else source.rest()
            assert [(each.id, each.position) for each in again] == [
                (each.id, each.position) for each in changes[number:]
            ]


def test_where_the_other_servers_transaction_is_the_newest_a_restart_goes_on(
    pair: tuple[MySQLDatabase, MySQLDatabase],
) -> None:
    one, two = pair
    with NumberSource(one, name="newest") as source:
        one.execute("CREATE TABLE newest (id int PRIMARY KEY)")
        follows(two, other=one)
        source.watch("newest")
        two.execute("STOP SLAVE")
        one.execute(*(f"INSERT INTO newest VALUES ({number})" for number in range(10)))
        two.execute("INSERT INTO newest VALUES (10)")
        follows(one, other=two)
        assert source.numbers(11) == list(range(11))
        source.stop()
        source.watch("newest")
        two.execute("INSERT INTO newest VALUES (11)", "START SLAVE")
        follows(one, other=two)
        one.execute("INSERT INTO newest VALUES (12)")
        assert source.numbers(2) == [11, 12]


def test_reading_goes_on_at_the_other_server(pair: tuple[MySQLDatabase, MySQLDatabase]) -> None:
    one, two = pair
    with NumberSource(one, name="moves") as source:
        one.execute("CREATE TABLE moves (id int PRIMARY KEY)", "INSERT INTO moves VALUES (1)")
        follows(two, other=one)
        source.watch("moves")
        one.execute("INSERT INTO moves VALUES (2)")
        seen = source.changes(1)
        follows(two, other=one)
        position = source.position
    with NumberSource(two, name="moves", position=position) as source:
        two.execute("INSERT INTO moves VALUES (3)")
        source.watch("moves")
        assert source.numbers(1) == [3]
        assert BinlogPosition.parse(source.position or "").server == "2"
        again = source.position
    assert numbers_of(seen) == [2]
    with NumberSource(one, name="moves", position=again) as source:
        follows(one, other=two)
        one.execute("INSERT INTO moves VALUES (4)")
        source.watch("moves")
        assert source.numbers(1) == [4]


def test_a_commit_that_the_other_server_never_got_is_a_gap_there(
    pair: tuple[MySQLDatabase, MySQLDatabase],
) -> None:
    one, two = pair
    with NumberSource(one, name="lost") as source:
        one.execute("CREATE TABLE lost (id int PRIMARY KEY)")
        follows(two, other=one)
        two.execute("STOP SLAVE")
        source.watch("lost")
        one.execute("INSERT INTO lost VALUES (1)")
        assert source.numbers(1) == [1]
        position = source.position
    # The other one has greater numbers, though not this one.
    two.execute(*(f"INSERT INTO lost VALUES ({number})" for number in range(2, 12)))
    with NumberSource(two, name="lost", position=position) as source:
        for _ in range(2):
            with pytest.raises(GapError, match="does not have"):
                source.watch("lost")
            source.stop()
        source.watch("lost", accept_gap=True)
        found: list[Change] = []
        while not found or found[-1].row["id"] != 11:
            found += source.rest()
        assert numbers_of(found)[-10:] == list(range(2, 12))
    two.execute("START SLAVE")
    follows(two, other=one)


@pytest.mark.parametrize(
    "settings",
    [
        ["server_id = 2, gtid_seq_no = 3", "server_id = 2", "server_id = 1"],
        ["gtid_seq_no = 100", "gtid_seq_no = 50", "gtid_seq_no = 51", "gtid_seq_no = 101"],
        ["gtid_seq_no = 100", "gtid_seq_no = 100", "gtid_seq_no = 100"],
        ["gtid_domain_id = 7, gtid_seq_no = 9", "gtid_domain_id = 0", "gtid_domain_id = 7, gtid_seq_no = 2"],
        ["server_id = 9, gtid_domain_id = 3", "server_id = 8, gtid_domain_id = 3, gtid_seq_no = 1"],
    ],
)
def test_whatever_numbers_a_session_gives(own_server: MariaDBServer, settings: list[str]) -> None:
    with NumberSource.on(own_server) as source:
        source.insert(*range(1, 10))
        source.watch(batch_size=1)
        number = 10
        for setting in settings:
            source.execute(
                *(f"INSERT INTO t VALUES ({each})" for each in (number, number + 1)), setting=setting
            )
            number += 2
        source.insert(number)
        every = list(range(10, number + 1))
        changes, positions = [], [source.position]
        while len(changes) < len(every):
            changes += source.changes(1)
            positions.append(source.position)
        assert numbers_of(changes) == every
        assert len({position_key(each.position) for each in changes}) == len(every)
        for domain in {each.position.partition("-")[0] for each in changes}:
            keys = [position_key(each.position) for each in changes if each.position.startswith(f"{domain}-")]
            assert keys == sorted(keys)
        source.stop()
        for count, position in list(enumerate(positions))[1::2]:
            source.position = position
            source.watch()
            left = len(every) - count
            again = [*(source.changes(left) if left else ()), *source.rest()]
            assert [each.position for each in again] == [each.position for each in changes[count:]]
            source.stop()


def test_within_one_writer_a_position_is_the_gtid(own_server: MariaDBServer) -> None:
    with NumberSource.on(own_server) as source:
        source.watch()
        source.insert(1, 2)
        first, second = source.changes(2)
        gtid = source.database.fetch("SELECT @@global.gtid_binlog_pos")[0][0]
        assert second.position == f"{gtid}:0"
        assert "@" not in first.position


def test_a_checkpoint_of_the_version_before_is_taken(own_server: MariaDBServer) -> None:
    """It has no last transaction and no epoch."""
    with NumberSource.on(own_server) as source:
        source.watch(batch_size=100)
        source.execute("INSERT INTO t SELECT seq FROM seq_1_to_9000")
        for batch in source._batches:
            if batch.changes and (batch.position.split(" ", maxsplit=1)[0].rpartition(":")[2] != "-1"):
                break
        seen = len(batch.changes)
        source.stop()
        words = batch.position.split(" ")
        source.position = " ".join(word for word in words if not word.startswith(("last=", "epoch=")))
        source.watch()
        assert source.numbers(9000 - seen)[0] == seen + 1
        source.insert(20000)
        assert source.numbers(1) == [20000]
        source.stop()
        words = (source.position or "").split(" ")
        assert any(word.startswith("last=") for word in words)
        source.position = " ".join(word for word in words if not word.startswith(("last=", "epoch=")))
        source.insert(20001)
        source.watch()
        assert source.numbers(1) == [20001]
