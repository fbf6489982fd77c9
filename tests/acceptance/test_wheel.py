"""What a team installs: the wheel, and the public names in it as their type checker and their programs see them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.release import build, problems
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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of a release; the source distribution lies beside it."""
    _, wheel = _built(tmp_path_factory.mktemp("release"))
    return wheel


def _built(directory: Path) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1764201600")
        return build(directory)


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


def test_a_release_has_the_packages_with_all_their_files_and_nothing_else(wheel: Path) -> None:
    assert problems(wheel.parent) == []
    with zipfile.ZipFile(wheel) as files:
        names = [name for name in files.namelist() if ".dist-info/" not in name]
    assert set(names) == set(_files_of_packages())


def test_a_release_is_the_same_to_the_byte_when_it_is_built_again(wheel: Path, tmp_path: Path) -> None:
    for again in _built(tmp_path):
        assert again.read_bytes() == (wheel.parent / again.name).read_bytes()


def test_what_should_not_be_in_a_release_is_found(wheel: Path, tmp_path: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    shutil.copy(sdist, tmp_path)
    with zipfile.ZipFile(wheel) as files, zipfile.ZipFile(tmp_path / wheel.name, "w") as broken:
        for name in files.namelist():
            content = files.read(name)
            if name.endswith("METADATA"):
                content = content.replace(b"Requires-Python: ", b"Requires-Python: of today, ")
            if name != "cdc_tasks/py.typed" and "/licenses/" not in name:
                broken.writestr(name, content)
        broken.writestr("tests/test_all.py", "")
        broken.writestr("cdc_tasks/__pycache__/changes.cpython-311.pyc", "")
    found = "\n".join(problems(tmp_path))
    for words in (
        "the wheel lacks cdc_tasks/py.typed",
        "the wheel lacks LICENSE",
        "the wheel has tests/test_all.py",
        "the wheel has tests at the top",
        "the wheel has cdc_tasks/__pycache__/changes.cpython-311.pyc",
        "RECORD and the wheel differ in tests/test_all.py",
        "RECORD has another checksum of",
        "METADATA: 'of today, >=3.11' is invalid for 'requires-python'",
    ):
        assert words in found


def _files_of_packages() -> Iterator[str]:
    """Yield the files that a part of the packages may read, as a wheel names them."""
    for package in ("cdc_tasks", "listener"):
        for path in (_CHECKOUT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(_CHECKOUT).as_posix()
