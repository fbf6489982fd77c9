"""A release: build wheel and source distribution, check them, and try the installation. See scripts/release.

    python -m harness.release build DIRECTORY
    python -m harness.release check DIRECTORY
    python -m harness.release try PYTHON

The same files and the same SOURCE_DATE_EPOCH give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import psycopg2
from packaging.metadata import Metadata

from harness.embedded_servers import PostgresServer, ValkeyServer

__all__ = ["build", "problems", "try_out"]

_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "cdc_tasks", "listener")
_NO_SOURCES: Final = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
_BUILD: Final = "import setuptools.build_meta as backend, sys; backend.build_{}(sys.argv[1])"
_PACKAGES: Final = {"cdc_tasks", "listener"}
_NEEDED: Final = (
    "cdc_tasks/py.typed",
    "listener/py.typed",
    "cdc_tasks/helpdesk/schema/postgresql.sql",
    "cdc_tasks/helpdesk/schema/mysql.sql",
)
_UNWANTED: Final = re.compile(r"(^|/)(tests?|__pycache__|harness|demo|benchmarks)(/|$)|\.pyc$|(^|/)\.")
_ROUTES: Final = """
from cdc_tasks import BinlogRouter, EventType

router = BinlogRouter()
router.register("public", "orders", EventType.INSERT, "shop.confirm", args=["id"], queue="cdc_bulk")
"""


# --- Build --------------------------------------------------------------------------------------------------


def build(directory: Path, *, checkout: Path = _CHECKOUT) -> list[Path]:
    """Build the source distribution, and the wheel from it; return both. Needs no network."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        for each in _SOURCES:
            _copy(checkout / each, source / each)
        sdist = _backend("sdist", source, directory)
        _make_reproducible(sdist)
        with tarfile.open(sdist) as archive:
            archive.extractall(source / "unpacked", filter="data")
        (unpacked,) = (source / "unpacked").iterdir()
        return [sdist, _backend("wheel", unpacked, directory)]


def _copy(path: Path, target: Path) -> None:
    shutil.copytree(path, target, ignore=_NO_SOURCES) if path.is_dir() else shutil.copy(path, target)


def _backend(kind: str, source: Path, directory: Path) -> Path:
    before = set(directory.iterdir())
    command = [sys.executable, "-c", _BUILD.format(kind), str(directory.resolve())]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the {kind} cannot be built:\n{done.stdout}{done.stderr}")
    (made,) = set(directory.iterdir()) - before
    return made


def _make_reproducible(sdist: Path) -> None:
    """Write the archive again, sorted, with the time of SOURCE_DATE_EPOCH and without an owner."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    with tarfile.open(sdist) as archive:
        files = [(each, archive.extractfile(each)) for each in archive.getmembers()]
        contents = {each: file.read() for each, file in files if file is not None}
    with (
        sdist.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member in sorted(contents, key=lambda each: each.name):
            archive.addfile(_plain(member, epoch), BytesIO(contents[member]))


def _plain(member: tarfile.TarInfo, epoch: int) -> tarfile.TarInfo:
    plain = tarfile.TarInfo(member.name)
    plain.size, plain.mtime, plain.mode = member.size, epoch, 0o755 if member.mode & 0o100 else 0o644
    return plain


# --- Check --------------------------------------------------------------------------------------------------


def problems(directory: Path, *, checkout: Path = _CHECKOUT) -> list[str]:
    """Return the problems of the two files in the directory."""
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    with tarfile.open(sdist) as archive_:
        in_sdist = {name.partition("/")[2] for name in archive_.getnames()}
    return [
        *_wrong_contents(in_wheel.keys()),
        *(f"{sdist.name} has {name}" for name in sorted(in_sdist) if _UNWANTED.search(name)),
        *(f"{sdist.name} lacks {name}" for name in _of_packages(in_wheel) - in_sdist),
        *_wrong_record(in_wheel),
        *_wrong_metadata(in_wheel, project),
        *_wrong_changelog((checkout / "CHANGELOG.md").read_text(), project["version"]),
    ]


def _of_packages(names: Mapping[str, bytes]) -> set[str]:
    return {name for name in names if name.partition("/")[0] in _PACKAGES}


def _wrong_contents(names: Any) -> Iterator[str]:
    yield from (f"the wheel lacks {name}" for name in _NEEDED if name not in names)
    yield from (f"the wheel has {name}" for name in sorted(names) if _UNWANTED.search(name))
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    yield from (f"the wheel has {name} at the top" for name in sorted(tops - _PACKAGES))
    for part in ("templates", "static"):
        if not any(f"listener/console/{part}/" in name for name in names):
            yield f"the wheel lacks the console's {part}"
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        yield "the wheel lacks LICENSE"


def _wrong_record(files: Mapping[str, bytes]) -> Iterator[str]:
    """Compare RECORD with the files, as pip does."""
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    told = dict(line.rsplit(",", 1)[0].rsplit(",", 1) for line in files[record].decode().splitlines())
    yield from (f"RECORD and the wheel differ in {name}" for name in told.keys() ^ files.keys())
    for name in (told.keys() & files.keys()) - {record}:
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        if told[name] != f"sha256={digest}":
            yield f"RECORD has another checksum of {name}"


def _wrong_metadata(files: Mapping[str, bytes], project: Mapping[str, Any]) -> Iterator[str]:
    """Compare METADATA with the specification and pyproject.toml; a package index refuses errors."""
    (name,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    try:
        metadata = Metadata.from_email(files[name])
    except ExceptionGroup as wrong:
        yield from (f"METADATA: {each}" for each in wrong.exceptions)
        return
    if str(metadata.version) != project["version"] or metadata.name != project["name"]:
        yield f"METADATA is of {metadata.name} {metadata.version}"
    if metadata.license_expression != project["license"] or metadata.license_files != ["LICENSE"]:
        yield "METADATA does not name the license"
    if metadata.description_content_type != "text/markdown" or not (metadata.description or "").strip():
        yield "METADATA has no description in Markdown"


def _wrong_changelog(text: str, version: str) -> Iterator[str]:
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", text, re.MULTILINE):
        yield f"CHANGELOG.md has no heading: ## {version} (YYYY-MM-DD)"


# --- Try the installation -----------------------------------------------------------------------------------


def try_out(python: Path) -> None:
    """Run the programs installed with this interpreter: help, a file of routes, and `check` against real servers."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres, valkey = stack.enter_context(PostgresServer()), stack.enter_context(ValkeyServer())
        (home / "shop_routes.py").write_text(_ROUTES)
        connection = psycopg2.connect(postgres.url)
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (id serial PRIMARY KEY)")
        connection.close()
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": postgres.url,
            "CELERY_BROKER_URL": valkey.url,
            "CACHE_URL": valkey.url_of(1),
            "CDC_ROUTES": "shop_routes:router",
        }
        for program, *arguments in (
            ("cdc-tasks", "--version"),
            ("cdc-listener", "--help"),
            ("cdc-listener", "routes"),
            ("cdc-listener", "check"),
        ):
            _run([str(python.parent / program), *arguments], home, environment)


def _run(command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=directory, env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def _check(directory: Path) -> None:
    if found := problems(directory):
        raise SystemExit("\n".join(found))


_COMMANDS: Final[dict[str, Callable[[Path], Any]]] = {"build": build, "check": _check, "try": try_out}

if __name__ == "__main__":
    _COMMANDS[sys.argv[1]](Path(sys.argv[2]))
