"""A user's own mistakes end in one sentence with file and line, on every command, as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.server_process import free_port
from harness.waiting import at_most

if TYPE_CHECKING:
    from tests.conftest import Broker, Database

_CHECKOUT = Path(__file__).resolve().parents[2]
_ROUTER = "from cdc_tasks import BinlogRouter\n"
_SETUP = f'{_ROUTER}\n\ndef setup_router(schema="public"):\n    router = BinlogRouter()\n    {{}}\n    return router\n'
_COMMANDS = ("run", "check", "routes", "status")


class Newcomer:
    """A person in a directory of their own, with files that have mistakes."""

    def __init__(self, home: Path, **environment: str) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CDC_", "CELERY_")) and not name.endswith(("_URL", "_COLOR"))
        }
        self.home = home
        self.environment = {**kept, "PYTHONPATH": str(_CHECKOUT), **environment}

    def writes(self, name: str, text: str) -> None:
        (self.home / name).write_text(text)

    def types(self, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m MODULE …`."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.home,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=at_most(60),
            check=False,
        )
        assert "Traceback" not in done.stderr + done.stdout
        return done

    def is_told(self, module: str, *arguments: str, **environment: str) -> dict[str, Any]:
        """Return the error that a command prints with `--json`."""
        done = self.types(module, *arguments, "--json", **environment)
        assert (done.returncode, done.stderr) == (1, "")
        return dict(json.loads(done.stdout))


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    away = free_port()
    return Newcomer(
        tmp_path,
        DATABASE_URL=f"postgresql://nobody@127.0.0.1:{away}/shop",
        CELERY_BROKER_URL=f"redis://127.0.0.1:{away}/0",
        CACHE_URL=f"redis://127.0.0.1:{away}/1",
        CDC_ROUTES="shop:setup_router",
    )


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("router = (", "shop.py:1: SyntaxError: '(' was never closed", None),
        ("\nimport nowhere", "shop.py:2: ModuleNotFoundError: No module named 'nowhere'", None),
        (_SETUP.format("router.regster()"), "shop.py:6: AttributeError: 'BinlogRouter' object has no", None),
        (_SETUP.format("router = BinlogRuoter()"), "shop.py:6: NameError", "Did you mean BinlogRouter?"),
        (
            _SETUP.format('router.register(schema, "orders", "insert", "a.task", colums=["id"])'),
            "shop.py:6: TypeError: BinlogRouter.register() got an unexpected keyword argument 'colums'",
            "Did you mean columns=?",
        ),
        (
            _SETUP.format('router.register(schema, "orders", "inserted", "a.task")'),
            "shop.py:6: events='inserted' names no known event.",
            "Use some of EventType.INSERT",
        ),
        (_SETUP.format("raise SystemExit(3)"), "shop.py:6: SystemExit: 3", None),
    ],
)
def test_a_mistake_in_the_routes_is_told_with_file_and_line(
    newcomer: Newcomer, text: str, told: str, hint: str | None
) -> None:
    newcomer.writes("shop.py", text)
    error = newcomer.is_told("listener", "routes")
    assert f"CDC_ROUTES=shop:setup_router cannot be used: {told}" in error["message"]
    assert error["hint"] is None if hint is None else error["hint"].startswith(hint)
    assert error["code"] in {"routes_not_loaded", "route"}


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_command_tells_it_in_the_same_words(newcomer: Newcomer, command: str) -> None:
    newcomer.writes("shop.py", "router = (")
    done = newcomer.types("listener", command)
    assert done.returncode == 1
    assert "shop.py:1: SyntaxError: '(' was never closed" in (
        done.stdout if command == "check" else done.stderr
    )


def test_a_routes_function_whose_schema_has_no_default_is_told(newcomer: Newcomer) -> None:
    newcomer.writes("shop.py", f"{_ROUTER}\n\ndef setup_router(schema):\n    return BinlogRouter()\n")
    error = newcomer.is_told("listener", "routes", DATABASE_URL="")
    assert "shop.py:4: missing a required argument: 'schema'" in error["message"]
    assert 'def setup_router(schema: str = "public")' in error["hint"]
    assert newcomer.types("listener", "routes").returncode == 0  # DATABASE_URL gives the schema


def test_a_misspelt_module_of_routes_or_tasks_is_told_with_the_one_that_was_meant(newcomer: Newcomer) -> None:
    newcomer.writes("shop.py", "")
    assert newcomer.is_told("listener", "routes", CDC_ROUTES="shopp:setup")["message"].endswith(
        "Did you mean shop?"
    )
    for module, arguments in (("celery", ["-A", "cdc_tasks", "worker"]), ("cdc_tasks", ["health"])):
        done = newcomer.types(module, *arguments, CDC_TASK_MODULES="shopp")
        assert done.returncode == 1
        assert "CDC_TASK_MODULES names shopp: there is no such module" in done.stderr
        assert "Did you mean shop?" in done.stderr


def test_a_mistake_in_a_module_of_tasks_is_told_with_file_and_line(newcomer: Newcomer) -> None:
    newcomer.writes("shop.py", "from cdc_tasks.celery import app\n\n@app.task(nmae='x'\ndef f(): ...\n")
    told = "CDC_TASK_MODULES names shop, which fails: shop.py:3: SyntaxError"
    for module, arguments in (
        ("celery", ["-A", "cdc_tasks", "worker"]),
        ("celery", ["-A", "cdc_tasks", "flower"]),
        ("cdc_tasks", ["refresh-cache", "roles"]),
    ):
        done = newcomer.types(module, *arguments, CDC_TASK_MODULES="shop")
        assert done.returncode == 1
        assert told in done.stderr
    error = newcomer.is_told("cdc_tasks", "health", CDC_TASK_MODULES="shop")
    assert error["code"] == "task_modules"
    assert told in error["message"]


def test_a_mistake_in_celerys_settings_is_told_with_file_and_line(newcomer: Newcomer) -> None:
    newcomer.writes("ours.py", "from cdc_tasks.config.celery import *\nworker_concurency = x\n")
    newcomer.writes("shop.py", _SETUP.format("pass"))
    for module, arguments in (("celery", ["-A", "cdc_tasks", "worker"]), ("listener", ["run"])):
        done = newcomer.types(module, *arguments, CELERY_CONFIG_MODULE="ours")
        assert done.returncode == 1
        assert "CELERY_CONFIG_MODULE=ours cannot be imported: ours.py:2: NameError" in done.stderr


@pytest.mark.parametrize("command", ["run", "check", "status"])
def test_settings_errors_look_the_same_everywhere(newcomer: Newcomer, command: str) -> None:
    done = newcomer.types("listener", command, CDC_NAME="Not This")
    assert done.stderr.startswith("error: 1 setting cannot be used:\n  - CDC_NAME='Not This':")


def test_run_with_json_logs_tells_them_as_an_event(newcomer: Newcomer) -> None:
    done = newcomer.types("listener", "run", CDC_NAME="Not This", CDC_LOG_FORMAT="json")
    event = json.loads(done.stderr)
    assert (event["event"], event["code"]) == ("failed", "settings")


def test_wrong_arguments_are_json_too(newcomer: Newcomer) -> None:
    done = newcomer.types("listener", "status", "--jsno", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["code"] == "usage"


@pytest.mark.parametrize(
    ("module", "command", "code", "variable"),
    [
        ("cdc_tasks", "accounts", "database_away", "DATABASE_URL"),
        ("cdc_tasks", "dead-letters list", "cache_away", "CACHE_URL"),
        ("cdc_tasks", "waiting", "cache_away", "CELERY_BROKER_URL"),
        ("listener", "parked list", "broker_away", "CELERY_BROKER_URL"),
        ("listener", "status", "broker_away", "CELERY_BROKER_URL"),
    ],
)
def test_a_server_that_is_away_is_told_with_the_variable_that_names_it(
    newcomer: Newcomer, module: str, command: str, code: str, variable: str
) -> None:
    newcomer.writes("shop.py", _SETUP.format("pass"))
    error = newcomer.is_told(module, *command.split())
    assert error["code"] == code
    assert f"Start it, or correct {variable}" in error["hint"]
    done = newcomer.types(module, *command.split())
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert error["hint"] in done.stderr


def test_a_variable_that_nothing_reads_and_routes_that_are_none_are_told(
    newcomer: Newcomer, database: Database, broker: Broker
) -> None:
    newcomer.writes("shop.py", _SETUP.format("pass"))
    there = {"DATABASE_URL": database.url, "CELERY_BROKER_URL": broker.url, "CACHE_URL": broker.cache_url}
    mistaken = {**there, "CDC_RUOTES": "x", "CDC_TEST_X": "y"}
    checked = json.loads(newcomer.types("listener", "check", "--json", **mistaken).stdout)
    found = {each["code"]: each for each in checked["findings"]}
    assert found["unknown_variable"]["what"] == "CDC_RUOTES"
    assert found["unknown_variable"]["hint"] == "Did you mean CDC_ROUTES?"
    assert found["no_routes"]["state"] == "warning"
    assert "sample_routes" not in found
    assert "has no routes" in newcomer.types("listener", "routes").stderr


def test_the_samples_routes_are_told_on_a_database_without_its_tables(
    newcomer: Newcomer, database: Database, broker: Broker
) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    there = {"DATABASE_URL": database.url, "CELERY_BROKER_URL": broker.url, "CACHE_URL": broker.cache_url}
    checked = json.loads(newcomer.types("listener", "check", "--json", CDC_ROUTES="", **there).stdout)
    (told,) = [each for each in checked["findings"] if each["code"] == "sample_routes"]
    assert not [each for each in checked["findings"] if "Did you mean public.orders" in each["found"]]
    assert "python -m listener init" in told["hint"]
    newcomer.types("cdc_tasks", "create-schema", **there)
    checked = json.loads(newcomer.types("listener", "check", "--json", CDC_ROUTES="", **there).stdout)
    assert [each["code"] for each in checked["findings"] if each["code"] == "sample_routes"] == []


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_logs_are_coloured_as_no_color_and_force_color_say(
    newcomer: Newcomer, environment: dict[str, str], is_coloured: bool
) -> None:
    newcomer.writes("shop.py", _SETUP.format("pass"))
    with subprocess.Popen(
        [sys.executable, "-m", "listener"],
        cwd=newcomer.home,
        env={**newcomer.environment, **environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.kill()
    assert "no_routes" in line
    assert ("\x1b[" in line) is is_coloured


@pytest.mark.parametrize("module", ["listener", "cdc_tasks"])
def test_each_program_tells_its_version(newcomer: Newcomer, module: str) -> None:
    from importlib.metadata import version

    assert newcomer.types(module, "--version").stdout == f"cdc-tasks {version('cdc-tasks')}\n"


def test_a_shell_completes_commands_and_options(newcomer: Newcomer) -> None:
    """`--show-completion` asks which shell has started it, so it runs in one."""
    script = """
        source <("$PYTHON" -m listener --show-completion)
        complete -p cdc-listener
        COMP_WORDS=(cdc-listener par) COMP_CWORD=1
        _cdc_listener_completion "$LISTENER"; echo "${COMPREPLY[@]}"
        COMP_WORDS=(cdc-listener parked list --ta) COMP_CWORD=3
        _cdc_listener_completion "$LISTENER"; echo "${COMPREPLY[@]}"
        "$PYTHON" -m cdc_tasks --show-completion
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=newcomer.home,
        env={
            **newcomer.environment,
            "PYTHON": sys.executable,
            "LISTENER": str(Path(sys.executable).with_name("cdc-listener")),
        },
        capture_output=True,
        text=True,
        timeout=at_most(60),
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "complete -o default -F _cdc_listener_completion cdc-listener"
    assert lines[1:3] == ["parked", "--task"]
    assert lines[-1] == "complete -o default -F _cdc_tasks_completion cdc-tasks"
