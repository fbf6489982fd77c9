"""Every public name loads: the packages find it when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import cdc_tasks
from cdc_tasks import notify
from cdc_tasks.changes import EventType

if TYPE_CHECKING:
    from types import ModuleType


@pytest.mark.parametrize("package", [cdc_tasks, notify], ids=["cdc_tasks", "cdc_tasks.notify"])
def test_every_public_name_loads(package: ModuleType) -> None:
    for name in package.__all__:
        found = getattr(package, name)
        own = found.name if isinstance(found, EventType) else found.__name__.rpartition(".")[2]
        assert own == name
