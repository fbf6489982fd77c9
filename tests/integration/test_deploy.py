"""What is in `deploy/`: units of systemd, manifests of Kubernetes, and an image with own routes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from configparser import RawConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import kubernetes_validate
import pytest
import yaml

from cdc_tasks.variables import FILE, KNOWN, SECRETS
from harness.machine_servers import find_program
from tests.support.compose import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEPLOY: Final = CHECKOUT / "deploy"
_VERSION: Final = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
_KNOWN: Final = KNOWN | {f"{name}{FILE}" for name in SECRETS} | {"PYTHONPATH"}
_TASKS_AND_ROUTES: Final = """
from cdc_tasks.celery import app
from listener.cli.commands import cli
app.loader.import_default_modules()
print(*app.tasks)
cli(["routes"])
"""
_EXPOSURE: Final = 20  # tenths: `systemd-analyze security` calls up to 2.0 well protected


# --- systemd ------------------------------------------------------------------------------------------------


class _Units(RawConfigParser):
    """Reads a unit, in which a name may come several times: of those the last one counts."""

    def __init__(self) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=["="], comment_prefixes=["#"])

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def _unit_files() -> list[Path]:
    return sorted((_DEPLOY / "systemd").glob("*.service"))


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with programs that are on this machine."""
    copies = []
    for file in _unit_files():
        copy = tmp_path / file.name.replace("@", "@1")
        copy.write_text(re.sub(r"/opt/cdc-tasks/bin/\S+", sys.executable, file.read_text()))
        copies.append(copy)
    return copies


def test_systemd_understands_each_line_of_the_units(units: list[Path], tmp_path: Path) -> None:
    assert _analyze("verify", "--man=no", "--recursive-errors=no", *units) == (0, "")
    wrong = tmp_path / "wrong.service"
    wrong.write_text(units[0].read_text().replace("RestartSec=", "RestartSeconds="))
    status, told = _analyze("verify", "--man=no", "--recursive-errors=no", wrong)
    assert "RestartSeconds" in told, status


def test_systemd_calls_the_units_well_protected(units: list[Path]) -> None:
    for unit in units:
        status, told = _analyze("security", "--offline=yes", f"--threshold={_EXPOSURE}", unit)
        assert status == 0, told


def test_the_units_name_programs_and_variables_that_there_are_and_get_secrets_as_files_only() -> None:
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"].keys()
    for file in _unit_files():
        text = file.read_text()
        service = _Units()
        service.read_string(text)
        program = shlex.split(service["Service"]["ExecStart"])[0].rpartition("/")[2]
        assert program in scripts | {"celery"}
        given = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
        assert given.keys() <= _KNOWN
        assert not given.keys() & SECRETS
        loaded = set(re.findall(r"^LoadCredential=([\w-]+):/etc/cdc-tasks/secrets/", text, re.MULTILINE))
        assert {value.removeprefix("%d/") for name, value in given.items() if name.endswith(FILE)} == loaded


def test_the_shared_environment_has_variables_that_there_are() -> None:
    lines = (_DEPLOY / "systemd" / "cdc-tasks.env").read_text().splitlines()
    given = {line.removeprefix("# ").partition("=")[0] for line in lines if re.match(r"(# )?[A-Z_]+=", line)}
    assert given <= _KNOWN - SECRETS
    assert "CDC_NAME" in given


def _analyze(command: str, *arguments: str | Path) -> tuple[int, str]:
    program = find_program("systemd-analyze", variable="CDC_TEST_SYSTEMD_ANALYZE")
    environment = {**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [program, command, *arguments],
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


# --- Kubernetes ---------------------------------------------------------------------------------------------


def _kustomization() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    return found


def _manifests() -> Iterator[dict[str, Any]]:
    for name in _kustomization()["resources"]:
        yield from yaml.safe_load_all((_DEPLOY / "kubernetes" / name).read_text())


def _pods() -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in _manifests()
        if each["kind"] == "Deployment"
    }


def test_each_manifest_follows_the_schema_of_its_kind() -> None:
    for manifest in _manifests():
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(
            {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replica": 2}}, "1.34", strict=True
        )


def test_the_kustomization_has_every_file_and_the_version_of_the_project() -> None:
    files = {path.name for path in (_DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(_kustomization()["resources"]) == files
    (image,) = _kustomization()["images"]
    assert image["newTag"] == _VERSION
    assert {pod["containers"][0]["image"] for pod in _pods().values()} == {image["name"]}


def test_each_pod_runs_without_rights_with_limits_and_with_probes() -> None:
    assert _pods().keys() == {"cdc-listener", "cdc-worker", "cdc-console"}
    for pod in _pods().values():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("livenessProbe", "readinessProbe"):
            called = container[probe].get("httpGet")
            assert called is None or called["port"] in ports
            assert called is not None or container[probe]["exec"]["command"]


def test_each_pod_gets_variables_that_there_are_and_secrets_as_files_of_a_volume() -> None:
    (settings,) = (each for each in _manifests() if each["kind"] == "ConfigMap")
    assert settings["data"].keys() <= _KNOWN - SECRETS
    for pod in _pods().values():
        (container,) = pod["containers"]
        mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
        for variable in container["env"]:
            assert variable["name"] in _KNOWN
            assert variable["name"] not in SECRETS
            if variable["name"].endswith(FILE):
                assert mounted[str(Path(variable["value"]).parent)] == "secrets"


def test_the_listener_has_a_standby_that_no_drain_and_no_rollout_takes_away() -> None:
    (listener,) = (
        each
        for each in _manifests()
        if each["kind"] == "Deployment" and "listener" in each["metadata"]["name"]
    )
    assert listener["spec"]["replicas"] == 2
    assert listener["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budgets = {
        each["metadata"]["name"]: each["spec"]
        for each in _manifests()
        if each["kind"] == "PodDisruptionBudget"
    }
    assert budgets["cdc-listener"]["minAvailable"] == 1
    annotations = listener["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    (port,) = _pods()["cdc-listener"]["containers"][0]["ports"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


# --- The image with own routes ------------------------------------------------------------------------------


def test_the_image_with_own_routes_finds_them(tmp_path: Path) -> None:
    text = (_DEPLOY / "image" / "Dockerfile").read_text().replace("\\\n", " ")
    assert f"FROM cdc-tasks:{_VERSION}\n" in text
    (copied, target) = re.findall(r"^COPY --chown=0:0 (\S+) /app/(\S+)$", text, re.MULTILINE)[0]
    (tmp_path / target).symlink_to(_DEPLOY / "image" / copied)
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    given = dict(each.split("=", 1) for each in line.split())
    shown = subprocess.run(
        [sys.executable, "-c", _TASKS_AND_ROUTES],
        cwd=tmp_path,  # the image's working directory is /app
        env={**os.environ, **given, "DATABASE_URL": "postgresql://nobody@localhost/none"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    tasks, *routes = shown.stdout.splitlines()
    assert {"shop.confirm", "shop.send"} <= set(tasks.split())
    assert {"shop.confirm", "shop.send"} <= set("".join(routes).split())
