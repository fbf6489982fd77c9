"""The loop between a source and a broker: what it calls, in which order, and what it acknowledges."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from cdc_tasks.testing import row_change
from listener.core.publisher import BrokerError, CheckpointMovedError, StoppedError
from listener.core.source import Batch, Saved, SourceLostError
from listener.daemon.loop import Listener
from listener.metrics.meter import Meter
from listener.router import BinlogRouter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class World:
    """A source and a broker in one; notes what is called."""

    source = "7f00"

    def __init__(self, *streams: list[Batch | Exception]) -> None:
        self.calls: list[str] = []
        self._streams = list(streams)
        self._saved: Saved | None = None
        self._in_flight: str | None = None
        self.listener: Listener

    # the source

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        assert again is not None
        self.calls.append(f"open {saved and saved.position}")

    def batches(self, after: str | None) -> Iterator[Batch]:
        self.calls.append(f"batches {after}")
        for each in self._streams.pop(0):
            if isinstance(each, Exception):
                raise each
            yield each
        self.listener.stop()

    def acknowledge(self, position: str) -> None:
        self.calls.append(f"acknowledge {position}")

    # the broker

    def read_checkpoint(self) -> Saved | None:
        self._confirm()
        return self._saved

    def attach(self, source: str) -> str | None:
        self._confirm()
        self.calls.append(f"attach {source}")
        return self._saved and self._saved.position

    def publish(
        self, fired: Any, *, checkpoint: str, pipelined: bool = False, notes: str | None = None, **_: Any
    ) -> str | None:
        self._confirm()
        self.calls.append(f"publish {checkpoint}: {len(list(fired))}")
        if checkpoint == "refused":
            raise BrokerError("no")
        self._in_flight = checkpoint
        if not pipelined:
            self._confirm(notes)
        return self._saved and self._saved.position

    def flush(self) -> str | None:
        self._confirm()
        return self._saved and self._saved.position

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _confirm(self, notes: str | None = None) -> None:
        if self._in_flight is not None:
            self._saved, self._in_flight = Saved(self._in_flight, notes), None


def _run(world: World) -> list[str]:
    router = BinlogRouter()
    router.register("public", "tickets", "insert", "task")
    world.listener = Listener(cast("Any", world), router, cast("Any", world))
    world.listener.run()
    return world.calls


def _batch(position: str, **options: Any) -> Batch:
    return Batch([row_change("tickets", "insert", after={"id": 1})], position, **options)


def test_each_batch_is_published_and_then_acknowledged() -> None:
    assert _run(World([Batch((), "0"), _batch("1"), _batch("2")])) == [
        "open None",
        "attach 7f00",
        "batches None",
        "publish 0: 0",
        "acknowledge 0",
        "publish 1: 1",
        "acknowledge 1",
        "publish 2: 1",
        "acknowledge 2",
        "acknowledge 2",
    ]


def test_a_pipelined_batch_is_acknowledged_once_it_is_confirmed() -> None:
    calls = _run(World([_batch("1", pipelined=True), _batch("2", pipelined=True)]))
    assert calls[3:] == ["publish 1: 1", "publish 2: 1", "acknowledge 1", "acknowledge 2"]


@pytest.mark.parametrize("error", [SourceLostError, CheckpointMovedError])
def test_after_a_loss_reading_goes_on_at_the_checkpoint(error: type[Exception]) -> None:
    calls = _run(World([_batch("1"), _batch("2", pipelined=True), error()], [_batch("3")]))
    assert calls[7:] == [
        "open 2",
        "attach 7f00",
        "batches 2",
        "publish 3: 1",
        "acknowledge 3",
        "acknowledge 3",
    ]


def test_what_the_broker_refuses_is_never_acknowledged() -> None:
    world = World([_batch("1", pipelined=True), _batch("refused")])
    with pytest.raises(BrokerError):
        _run(world)
    assert not [call for call in world.calls if call.startswith("acknowledge")]


def test_a_stop_while_the_broker_is_away_ends_it_without_an_acknowledgement() -> None:
    world = World([StoppedError()])
    assert _run(world) == ["open None", "attach 7f00", "batches None"]


class _Paused:
    """A control whose stream a person has paused for a moment, behind each batch."""

    backfills = replays = None

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.seen: list[tuple[bool, bool]] = []

    def hold(self, _: object, keep_up: Callable[[], None]) -> None:
        keep_up()
        self.seen.append((self._meter.is_held, self._meter.batch_at is not None))

    def restore(self) -> bool:
        return True

    def filtered(self, fired: Any) -> Any:
        return fired

    def ignore(self, *_: object) -> None:
        pass

    begin = close = look = passed = offer_backfills = ignore


def test_a_meter_counts_what_was_confirmed_and_knows_of_a_pause() -> None:
    router = BinlogRouter()
    route = router.register("public", "tickets", "insert", "task")
    meter = Meter(router)
    world, control = (
        World([_batch("1", pipelined=True), Batch((), "1b"), _batch("2"), SourceLostError()], [_batch("3")]),
        _Paused(meter),
    )
    world.has_accepted_gap = False  # type: ignore[attr-defined]  # only a control asks for it
    world.listener = Listener(
        cast("Any", world), router, cast("Any", world), cast("Any", control), meter=meter
    )
    world.listener.run()
    assert meter.published == {(route.id, "insert"): 3}
    assert (meter.read["insert"], meter.batches, meter.losses) == (3, 3, 1)
    assert set(control.seen) == {(True, True)}
    assert not meter.is_held


def test_at_debug_each_batch_and_change_is_logged_without_its_row(caplog: pytest.LogCaptureFixture) -> None:
    def logged() -> list[dict[str, Any]]:
        new = row_change("tickets", "insert", after={"title": "a secret"})
        other = row_change("users", "insert", after={"id": 1})
        world = World([Batch((), "0"), Batch((new, other), "1")])
        with capture_logs() as found:
            assert "publish 1: 1" in _run(world)
        assert "secret" not in str(found)
        assert [new.id, other.id] == [
            each["change_id"] for each in found if each["event"] == "change"
        ] or not found
        return [dict(each) for each in found]

    caplog.set_level(logging.INFO)
    assert logged() == []
    caplog.set_level(logging.DEBUG)
    first, second, batch = logged()
    assert (first["table"], first["change_event"], first["fired"]) == ("public.tickets", "insert", ["task"])
    assert (second["table"], second["fired"], second["parked"]) == ("public.users", [], [])
    assert (batch["event"], batch["changes"], batch["tasks"], batch["position"]) == ("batch", 2, 1, "1")
