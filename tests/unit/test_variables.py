"""Which variable goes first, and which one an error or a hint names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from cdc_tasks.config import settings_module
from cdc_tasks.errors import CDCError
from cdc_tasks.settings import SettingsError
from cdc_tasks.variables import TWINS, as_set
from listener.core.findings import Finding
from listener.daemon.settings import ListenerSettings, load

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST: Final = {
    "CACHE_URL": "redis://first/1",
    "CELERY_BROKER_URL": "redis://first/0",
    "CELERY_CONFIG_MODULE": "first",
    "DATABASE_URL": "postgresql://first/name",
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CDC_APP", *TWINS, *TWINS.values()):
        monkeypatch.delenv(name, raising=False)
    for name, value in FIRST.items():
        monkeypatch.setenv(name, value.replace("first", "second"))


def _set_twins(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str] = FIRST) -> None:
    for name, value in values.items():
        monkeypatch.setenv(TWINS[name], value)


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_goes_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "second" in _read(name)
    monkeypatch.setenv(TWINS[name], "")  # as if it was not set
    assert "second" in _read(name)
    _set_twins(monkeypatch, {name: FIRST[name]})
    assert _read(name) == FIRST[name]


def _read(name: str) -> str:
    if name == "CELERY_CONFIG_MODULE":
        assert settings_module() == load(ListenerSettings).celery_config_module
        return settings_module()
    value = getattr(load(ListenerSettings), name.lower())
    return str(value.get_secret_value())


@pytest.mark.parametrize("name", [each for each in TWINS if each != "CELERY_CONFIG_MODULE"])
def test_an_error_of_the_settings_names_the_variable_that_was_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "nonsense")
    with pytest.raises(SettingsError, match=f"- {name}="):
        load(ListenerSettings)
    _set_twins(monkeypatch, {name: "nonsense"})
    with pytest.raises(SettingsError, match=f"- {TWINS[name]}="):
        load(ListenerSettings)


@pytest.mark.parametrize("name", TWINS)
def test_a_hint_names_the_variable_that_was_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"Correct {name}, or ask: echo ${name}"
    assert as_set(text) == text
    _set_twins(monkeypatch)
    twin = f"Correct {TWINS[name]}, or ask: echo ${TWINS[name]}"
    assert as_set(text) == as_set(twin) == twin
    assert CDCError(f"{name} is wrong.", hint=text).hint == twin
    assert CDCError(f"{name} is wrong.").message == f"{TWINS[name]} is wrong."
    assert Finding(what="it", found="not there", hint=text).hint == twin


def test_a_hint_names_the_settings_of_the_app_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_APP", "shop")
    hint = "Correct CELERY_BROKER_URL (CACHE_URL, if the broker is not Redis), or task_routes in celeryconfig.py."
    assert as_set(hint) == (
        "Correct broker_url of the app shop (CDC_CACHE_URL, if the broker is not Redis), "
        "or task_routes in the settings of the app shop."
    )
    monkeypatch.setenv("CDC_APP", "cdc_tasks.celery:app")  # it has its settings from the variables
    assert as_set(hint) == hint


def test_names_that_only_contain_such_a_name_stay() -> None:
    for text in ("CDC_TEST_DATABASE_URL", "MY_CACHE_URL", "DATABASE_URL_OF_TESTS", "CDC_DATABASE_URL"):
        assert as_set(text) == text
