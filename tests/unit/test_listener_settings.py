"""What the listener reads from the environment, and what it says about what it can't use."""

from __future__ import annotations

import pytest

from cdc_tasks.settings import SettingsError, load
from listener.daemon.database_url import DatabaseType, UnknownDatabaseTypeError, detect_database_type
from listener.daemon.settings import ListenerSettings, RouteSettings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ListenerSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://user@host/name", DatabaseType.POSTGRESQL),
        ("postgres://user@host/name", DatabaseType.POSTGRESQL),
        ("postgresql+psycopg2://user@host/name", DatabaseType.POSTGRESQL),
        ("mysql://user@host/name", DatabaseType.MYSQL),
        ("mariadb://user@host/name", DatabaseType.MYSQL),
        ("mysql+pymysql://user@host/name", DatabaseType.MYSQL),
        ("mariadb+pymysql://user@host/name", DatabaseType.MYSQL),
    ],
)
def test_the_scheme_tells_the_kind_of_database(url: str, expected: DatabaseType) -> None:
    assert detect_database_type(url) is expected


@pytest.mark.parametrize(
    "url", ["oracle://user:secret@host/name", "host=here password=secret", "", "sqlite:///x.db"]
)
def test_another_kind_of_database_is_a_clear_error_without_the_password(url: str) -> None:
    with pytest.raises(UnknownDatabaseTypeError, match="postgresql://") as raised:
        detect_database_type(url)
    assert "secret" not in str(raised.value)


def test_only_the_database_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@host/name")
    settings = load(ListenerSettings)
    assert settings.database_type is DatabaseType.POSTGRESQL
    assert settings.slot == settings.publication == settings.cdc_name == "cdc_tasks"
    assert settings.cdc_routes == "listener.routes:setup_router"
    assert settings.cdc_lag_alarm == 1024**3


def test_slot_and_publication_follow_the_name_unless_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@host/name")
    monkeypatch.setenv("CDC_NAME", "helpdesk")
    monkeypatch.setenv("CDC_PUBLICATION", "ours")
    settings = load(ListenerSettings)
    assert (settings.slot, settings.publication) == ("helpdesk", "ours")


def test_the_routes_can_be_read_without_a_database() -> None:
    assert load(RouteSettings).cdc_routes == "listener.routes:setup_router"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@host/name")
    monkeypatch.setenv("CDC_SERVER_ID", "")
    assert load(ListenerSettings).cdc_server_id is None


def test_all_problems_are_told_at_once_with_variable_value_and_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = {
        "CELERY_BROKER_URL": "reddis://user:broker-secret@host",
        "CACHE_URL": "memcached://user:cache-secret@host",
        "CDC_NAME": "Help-Desk",
        "CDC_ROUTES": "routes.py",
        "CDC_PLUGIN": "decoderbufs",
        "CDC_SERVER_ID": "0",
        "CDC_DURABILITY": "paper",
        "CDC_BATCH_SIZE": "many",
        "CDC_LAG_ALARM": "5 parsecs",
        "CDC_LOG_FORMAT": "xml",
    }
    for name, value in bad.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load(ListenerSettings)
    told = str(raised.value)
    assert "DATABASE_URL is not set. The database, e.g. postgresql://" in told
    assert [name for name in bad if f"- {name}=" not in told] == []
    assert "CDC_DURABILITY='paper': Input should be 'memory', 'fsync' or 'replicated'" in told
    assert "Celery has no broker transport 'reddis'" in told
    assert "secret" not in told
    assert "11 settings" in told


def test_settings_that_were_read_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:a-secret@host/name")
    settings = load(ListenerSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.cdc_name = "other"  # type: ignore[misc]
    assert "a-secret" not in repr(settings)
