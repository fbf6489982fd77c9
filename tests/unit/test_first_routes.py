"""A first file of routes, made from what was read of the tables."""

from __future__ import annotations

from typing import Any

from listener.core.existing_table import ExistingTable
from listener.daemon.first_routes import routes_file

_ORDERS = ExistingTable(schema="public", name="orders", key=("id",), columns=("id", "status"))
_ODD = ExistingTable(schema="public", name='a"b\\c*', key=("k\u00e9y",), columns=("k\u00e9y",))


def _routes(text: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(text, "cdc_routes.py", "exec"), namespace)
    return namespace["setup_router"]().routes


def test_the_file_of_a_project_with_an_app_of_its_own_shows_a_route_on_a_task() -> None:
    text = routes_file([_ORDERS], module="cdc_routes", home="public", app="shop.celery:app")
    assert '    @on_change("orders", UPDATE, when=changed("status"), args=["id"])' in text
    assert "    from shop.celery import app\n" in text
    assert "    python -m listener -A shop.celery:app check\n" in text
    assert [each.table for each in _routes(text)] == ["orders"]


def test_the_file_without_one_names_the_modules_of_tasks() -> None:
    text = routes_file([_ORDERS], module="cdc_routes", home="public")
    assert "CDC_TASK_MODULES" in text
    assert "on_change" not in text
    assert [each.columns for each in _routes(text)] == [("id",)]


def test_a_name_with_quotes_and_wildcards_stands_for_itself() -> None:
    (route,) = _routes(routes_file([_ODD], module="cdc_routes", home="public"))
    assert route.matches("public", _ODD.name)
    assert not route.matches("public", 'a"b\\cd')
    assert route.columns == _ODD.key
