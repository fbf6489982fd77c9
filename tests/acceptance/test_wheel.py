"""What a team installs: the wheel, and the public names in it as their type checker and their programs see them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.wheel import environment_with

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]

_ROUTES = """
from celery import shared_task

from cdc_tasks import INSERT, UPDATE, BinlogRouter, EventType, RowChange, TryAgain, became, latest_only, master_cache
from cdc_tasks import notify, on_change
from cdc_tasks.testing import assert_fires, row_change


def setup_router(schema: str = "public") -> BinlogRouter:
    router = BinlogRouter()
    router.register(schema, "orders", [EventType.UPDATE], "shop.send", when=became("status", "paid"), columns=["id"])
    return router


def send(message: dict[str, object]) -> str:
    change = RowChange.from_message(message)
    if change.after is None:
        raise TryAgain("no row yet", after=3)
    with latest_only("order", change) as is_latest:
        return str(is_latest)


@on_change("orders", UPDATE, INSERT, when=became("status", "paid"), kwargs={"order_id": "id"}, countdown=5)
@shared_task(name="shop.confirm")
def confirm(order_id: int) -> int:
    return order_id


@notify.composes("paid")
def paid(session: object, notification: notify.Notification) -> notify.Message | None:
    return notify.Message(heading="Paid", title=str(master_cache.get("roles")))


paid_order = row_change("orders", "update", before={"status": "new"}, after={"status": "paid"})
assert_fires(setup_router(), paid_order, "shop.send")
"""

_WRONG = """
from cdc_tasks import BinlogRouter, EventType
from listener.router import BinlogRouter as UnderItsOldName

BinlogRouter().register(1, "orders", [EventType.UPDATE], "shop.send")
UnderItsOldName().register("public", "orders", [EventType.UPDATE], "shop.send", batch="many")
"""

_LIGHT = """
import sys
from cdc_tasks import BinlogRouter, EventType, RowChange, TryAgain, became, changed
heavy = {"celery", "flower", "psycopg2", "pymysql", "pymysqlreplication", "redis", "slack_sdk", "sqlalchemy"}
print(*sorted(heavy & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that has the wheel, and the dependencies of this one."""
    return environment_with(wheel, tmp_path_factory.mktemp("installed") / "venv")


def _checked(installed: Path, program: str, tmp_path: Path) -> tuple[int, str]:
    path = tmp_path / "theirs.py"
    path.write_text(program)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed), str(path)]
    found = subprocess.run(mypy, check=False, cwd=tmp_path, capture_output=True, text=True)
    return found.returncode, found.stdout


def test_a_users_file_is_type_checked_against_the_wheel(installed: Path, tmp_path: Path) -> None:
    status, output = _checked(installed, _ROUTES, tmp_path)
    assert status == 0, output


def test_a_users_mistakes_are_found(installed: Path, tmp_path: Path) -> None:
    status, output = _checked(installed, _WRONG, tmp_path)
    assert status == 1
    assert 'Argument 1 to "register" of "BinlogRouter" has incompatible type "int"' in output
    assert 'Argument "batch" to "register" of "BinlogRouter" has incompatible type "str"' in output


def test_a_file_of_routes_loads_no_driver_and_no_celery(installed: Path, tmp_path: Path) -> None:
    loaded = subprocess.run(
        [installed, "-c", _LIGHT], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert loaded.split() == []


def test_pytest_finds_the_fixture_by_itself(installed: Path, tmp_path: Path) -> None:
    command = [installed, "-m", "pytest", "--fixtures", "-q", "-p", "no:cacheprovider", "."]
    found = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert "cdc_database_url" in found.stdout


@pytest.mark.parametrize(
    "package", ["cdc_tasks", "cdc_tasks.notify", "cdc_tasks.testing", "listener", "listener.router"]
)
def test_every_public_name_is_there(installed: Path, tmp_path: Path, package: str) -> None:
    program = f"import {package} as p; print(*(name for name in p.__all__ if not hasattr(p, name)), len(p.__all__) > 2)"
    found = subprocess.run(
        [installed, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert found.split() == ["True"]


def test_wheel_and_source_have_two_packages_and_what_those_need(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "cdc_tasks",
        "listener",
    }
    assert {"cdc_tasks/py.typed", "listener/py.typed"} <= set(names)
    assert {"mysql.sql", "postgresql.sql"} <= {Path(name).name for name in names}
    assert {name for name in names if ".dist-info/" not in name} == set(_files_of_packages())
    source = "import setuptools.build_meta as backend, sys; print(backend.build_sdist(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", source, tmp_path],
        cwd=_copy_of_checkout(tmp_path),
        check=True,
        capture_output=True,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        parts = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert {"cdc_tasks", "listener", "pyproject.toml", "README.md", "LICENSE"} <= parts
    assert parts & {"tests", "demo", "harness", "benchmarks", "celeryconfig.py", "flowerconfig.py"} == set()
    assert _installed_from(sdist, tmp_path / "installed") == {
        name for name in names if ".dist-info/" not in name
    }


def _files_of_packages() -> Iterator[str]:
    """Yield the files that a part of the packages may read, as a wheel names them."""
    for package in ("cdc_tasks", "listener"):
        for path in (_CHECKOUT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(_CHECKOUT).as_posix()


def _installed_from(sdist: Path, home: Path) -> set[str]:
    """Install a source distribution without the network; return the files of its packages."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(home)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(sdist)], check=True)
    found = {path.relative_to(home) for path in home.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if path.parts[0] != "bin" and ".dist-info" not in path.parts[0]}


def _copy_of_checkout(tmp_path: Path) -> Path:
    """Return a copy of what a source distribution is made of: the build writes beside it."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "celeryconfig.py"):
        shutil.copy(_CHECKOUT / name, copy)
    for name in ("cdc_tasks", "listener", "demo", "tests"):
        shutil.copytree(_CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy
