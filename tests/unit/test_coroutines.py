"""A coroutine that a signal interrupts, as a time limit does, is cancelled, and the next one runs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from cdc_tasks.worker import coroutines

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def time_limit() -> Iterator[None]:
    def end(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, end)
    yield
    signal.signal(signal.SIGUSR1, before)


async def _is_interrupted(cleaned_up: list[bool]) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        await asyncio.sleep(3600)
    finally:
        cleaned_up.append(True)


async def _answers() -> int:
    return id(asyncio.get_running_loop())


def test_a_time_limit_cancels_the_coroutine(time_limit: None) -> None:
    cleaned_up: list[bool] = []
    with pytest.raises(SoftTimeLimitExceeded):
        coroutines.run(_is_interrupted(cleaned_up))
    assert cleaned_up == [True]


def test_the_tasks_of_a_process_share_its_loop() -> None:
    assert coroutines.run(_answers()) == coroutines.run(_answers())
    coroutines.close()
