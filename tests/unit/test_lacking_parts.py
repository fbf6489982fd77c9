"""What is told about an installed Celery that lacks a part."""

from __future__ import annotations

import pytest

from cdc_tasks import versions


@pytest.mark.parametrize(
    ("installed", "broker", "told"),
    [
        ((5, 4, 0), "amqp", ["No delayed delivery", "No soft shutdown", "No limit"]),
        ((5, 5, 3), "amqp", ["No limit"]),
        ((5, 6, 0), "amqp", []),
        ((5, 7, 0), "amqp", []),
        ((5, 4, 0), "redis", ["No soft shutdown"]),
        ((5, 5, 0), "redis", []),
    ],
    ids=str,
)
def test_each_part_is_told_with_the_broker_and_the_celery_that_lack_it(
    installed: tuple[int, ...], broker: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed", lambda _: installed)
    lacks = versions.lacking_parts(broker)
    assert [each.partition(":")[0].partition(" for ")[0] for each in lacks] == told
    assert all(each.endswith(" has it.") for each in lacks)
