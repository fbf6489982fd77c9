"""docker-compose.yml and the Dockerfile, held against the specification and against the project."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from flower.options import default_options

from cdc_tasks.settings import WorkerSettings
from cdc_tasks.variables import KNOWN
from listener.console.settings import ConsoleSettings
from listener.daemon.settings import ListenerSettings
from tests.support.compose import CHECKOUT, dockerfile_stages, load_compose, variables_of_compose

_OUR_SERVICES = ("worker", "listener", "console", "mysql-worker", "mysql-listener", "mysql-console", "flower")
# Addresses and secrets of the containers, and what only tests and Django read.
_NOT_FROM_ENV_FILE = {
    "CDC_BROKER_URL",
    "CDC_CACHE_URL",
    "CDC_CONSOLE_ADDRESS",
    "CDC_CONSOLE_PASSWORD",
    "CDC_DATABASE",
    "CDC_DATABASE_URL",
    "CDC_FLOWER_URL",
    "CDC_METRICS_ADDRESS",
    "CDC_SECRET_KEY",
    "CDC_TEST_DATABASE_URL",
}
_DATABASES = {"postgresql": "postgres", "mysql": "mysql"}  # the server's service, by profile


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """What `scripts/make-env` writes into `.env`."""
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(CHECKOUT / "scripts" / "make-env", tmp_path / "scripts")
    subprocess.run([script], check=True)
    lines = (tmp_path / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@pytest.fixture
def services(secrets: dict[str, str]) -> dict[str, Any]:
    return load_compose(secrets)


def test_the_compose_file_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*command, "docker-compose.yml"], cwd=CHECKOUT, check=True)


def test_the_env_file_has_what_the_compose_file_asks_for_and_nobody_else_may_read_it(
    secrets: dict[str, str], tmp_path: Path
) -> None:
    assert set(secrets) == {*variables_of_compose(), "COMPOSE_PROFILES"}
    assert secrets["COMPOSE_PROFILES"] == "postgresql"
    Fernet(secrets["CDC_SECRET_KEY"])
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_an_env_file_that_is_there_is_kept(secrets: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([tmp_path / "scripts" / "make-env"], check=True)
    assert f"REDIS_PASSWORD={secrets['REDIS_PASSWORD']}\n" in (tmp_path / ".env").read_text()


def test_an_env_file_of_an_earlier_version_gets_what_it_lacks(
    secrets: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.chmod(0o644)  # as a person may have made it
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines() if "MYSQL" not in line))
    subprocess.run([tmp_path / "scripts" / "make-env"], check=True)
    lines = dict(line.split("=", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    assert lines.keys() == secrets.keys()
    assert lines["REDIS_PASSWORD"] == secrets["REDIS_PASSWORD"]
    assert lines["MYSQL_ROOT_PASSWORD"]
    assert file.stat().st_mode & 0o077 == 0


def test_every_variable_of_our_containers_is_one_that_somebody_reads(services: dict[str, Any]) -> None:
    settings = {
        *WorkerSettings.model_fields,
        *ListenerSettings.model_fields,
        *ConsoleSettings.model_fields,
    }
    known = {name.upper() for name in settings} | {f"FLOWER_{name.upper()}" for name in default_options}
    for name in _OUR_SERVICES:
        assert set(services[name]["environment"]) <= known


def test_our_containers_get_each_variable_of_ours_from_the_env_file_and_servers_get_none(
    secrets: dict[str, str],
) -> None:
    ours = {name for name in KNOWN if not name.endswith("_FILE")} - _NOT_FROM_ENV_FILE
    services = load_compose({**secrets, **dict.fromkeys(ours, "given")})
    for name in _OUR_SERVICES:
        given = {each for each, value in services[name]["environment"].items() if value == "given"}
        missing = (ours if "console" in name else ours - {"CDC_CONSOLE_READ_PASSWORD"}) ^ given
        assert not missing, (
            "write each variable of cdc_tasks.variables.KNOWN under x-settings of docker-compose.yml"
        )
    for name in (*_DATABASES.values(), "redis"):
        assert not any(each.startswith("CDC_") for each in services[name]["environment"])


def test_every_container_has_limits_and_its_logs_are_rotated(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["mem_limit"]
        assert service["cpus"]
        assert service["logging"] == {"driver": "local", "options": {"max-size": "20m", "max-file": "5"}}


def test_the_image_has_the_version_of_the_project(services: dict[str, Any]) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert {services[name]["image"] for name in _OUR_SERVICES} == {f"cdc-tasks:{project['version']}"}


def test_every_file_that_is_mounted_exists(services: dict[str, Any]) -> None:
    for server in _DATABASES.values():
        mounted = [volume.split(":")[0] for volume in services[server]["volumes"]]
        files = [path for path in mounted if path.startswith("./")]
        assert len(files) == 2
        assert all((CHECKOUT / path).is_file() for path in files)
        assert os.access(CHECKOUT / files[1], os.X_OK)


def test_nothing_starts_before_what_it_needs_is_healthy(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["healthcheck"]["test"]
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert needed in services
    for prefix, database in (("", "postgres"), ("mysql-", "mysql")):
        for name in ("worker", "listener", "console"):
            assert set(services[f"{prefix}{name}"]["depends_on"]) == {database, "redis"}


@pytest.mark.parametrize("profile", _DATABASES)
def test_a_profile_has_one_database_one_listener_and_workers_of_its_own(
    services: dict[str, Any], profile: str
) -> None:
    chosen = {name for name, each in services.items() if profile in each.get("profiles", [profile])}
    assert len(chosen) == 6
    assert chosen & set(_DATABASES.values()) == {_DATABASES[profile]}
    for name in chosen:
        assert set(services[name].get("depends_on", {})) <= chosen
        url = services[name]["environment"].get("DATABASE_URL", "")
        assert not url or url.startswith(f"{profile}://")
        assert not url or f"@{_DATABASES[profile]}:" in url


def test_only_pages_are_reachable_from_outside_and_only_from_this_machine_with_a_password(
    services: dict[str, Any], secrets: dict[str, str]
) -> None:
    pages = {"flower", "console", "mysql-console"}
    assert {name for name, service in services.items() if "ports" in service} == pages
    assert services["flower"]["ports"] == ["127.0.0.1:5555:5555"]
    assert services["flower"]["environment"]["FLOWER_BASIC_AUTH"] == f"admin:{secrets['FLOWER_PASSWORD']}"
    for name in pages - {"flower"}:
        assert services[name]["ports"] == ["127.0.0.1:5556:5556"]
        assert services[name]["environment"]["CDC_CONSOLE_PASSWORD"] == secrets["CONSOLE_PASSWORD"]


def test_the_image_runs_as_nobody_in_particular_and_holds_no_secret() -> None:
    *_, final = dockerfile_stages()
    assert ("USER", "10001") in final
    text = (CHECKOUT / "Dockerfile").read_text()
    assert not any(word in text for word in ("PASSWORD", "SECRET", "TOKEN", "ARG "))


def test_docker_sees_only_what_the_image_is_made_of() -> None:
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    sources = [
        source
        for stage in dockerfile_stages()
        for instruction, argument in stage
        if instruction == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    ]
    assert allowed == set(sources)


def test_what_the_dockerfile_builds_has_every_command_that_the_containers_run(
    services: dict[str, Any], tmp_path: Path
) -> None:
    venv = _replay_build_stage(tmp_path)
    for name in _OUR_SERVICES:
        program, *arguments = services[name]["command"]
        # A command of a dependency is not in this one's directory: see `_replay_build_stage`.
        ours = venv / "bin" / program
        command = [ours] if ours.exists() else [venv / "bin" / "python", "-m", program]
        # Away from the checkout, where only what is installed counts.
        result = subprocess.run(
            [*command, *arguments, "--help"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", **services[name]["environment"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def _replay_build_stage(directory: Path) -> Path:
    """Run the first stage's instructions in `directory`; returns the virtual environment that comes out."""
    image_venv, venv = "/opt/cdc-tasks", directory / "venv"
    source = directory / "src"
    source.mkdir()
    # What the image would download, our dependencies, is taken from where these tests run.
    environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "PIP_NO_DEPS": "1"}
    environment.pop("PYTHONPATH", None)
    for instruction, argument in dockerfile_stages()[0]:
        if instruction == "COPY":
            *names, _target = argument.split()
            for name in names:
                _copy(CHECKOUT / name, source)
        elif instruction == "RUN":
            command = [part.replace(image_venv, str(venv)) for part in shlex.split(argument)]
            command[0] = sys.executable if command[0] == "python" else command[0]
            subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return venv


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(path, target)
