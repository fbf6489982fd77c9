"""An example that runs, and what its story does with it; each step is printed as a person would type it."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from cdc_tasks.errors import CDCError
from examples.programs import RELEASE, Program, procfile, run
from examples.servers import Servers, connect, forget_listener, start_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from examples.servers import DatabaseKind

__all__ = ["EXAMPLES", "Stage", "Story", "StoryError", "started"]

T = TypeVar("T")

EXAMPLES: Final = ("django-shop", "fastapi-orders", "search-index", "cache", "audit-log", "outbox")
_HERE: Final = Path(__file__).resolve().parent
_SERVERS: Final = ("DATABASE_URL", "CELERY_BROKER_URL")
_TIMEOUT: Final = 240.0  # seconds; only against what hangs
_PLACE: Final = re.compile(r"\{(\w+)\}")  # of a program's address, in a hint
_PREFIX: Final = re.compile(r"^\[[^]]*\] (?:(?:Task )?[\w.]+\[[-+\w]+\]:? )?")  # of a line in a worker's log


class Story(Protocol):
    """A module of `examples.stories`."""

    VARIABLES: Mapping[str, str]  # more variables of the example; {files} is a directory
    OTHER_DATABASE: str | None  # the variable of a second database that the example needs
    TRY: Sequence[str]  # what a person may do next

    def play(self, stage: Stage) -> None:
        """Show what the example does; raises StoryError where it does not do it."""


class StoryError(CDCError):
    """An example did not do what its story says."""


@dataclass(kw_only=True)
class Stage:
    """A running example."""

    directory: Path
    servers: Servers
    environment: Mapping[str, str]
    shown: Sequence[str]  # the variables of it that a person needs in a shell
    programs: Mapping[str, Program]
    _seen: dict[str, int] = field(default_factory=dict)  # how much of each log is in the past
    _killed: set[str] = field(default_factory=set)
    _steps: int = 0

    # --- What a person does ---------------------------------------------------------------------------------

    def step(self, title: str) -> None:
        """Begin a step."""
        self._steps += 1
        print(f"\n{self._steps}. {title}", flush=True)

    def sql(self, *statements: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements in one session, as in psql; return the rows of the last one."""
        self._mark()
        with closing(connect(url or self.servers.database)) as connection, connection.cursor() as cursor:
            for statement in statements:
                self.say(f"sql> {' '.join(statement.split())};")
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def run(self, line: str) -> str:
        """Run a command in the example's directory; return what it printed."""
        self._mark()
        self.say(f"$ {line}")
        output = run(line, self.directory, self.environment)
        for each in output.splitlines():
            self.say(f"  {each}")
        return output

    def http(
        self, method: str, program: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str] = {}
    ) -> Any:
        """Send a request with JSON, and return what was answered, also where the status is an error's."""
        self._mark()
        self.say(f"{method} {path} {json.dumps(body)}")
        request = urllib.request.Request(  # noqa: S310 - a program of ours
            f"{self.programs[program].url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
            method=method,
        )
        status, answer = _answer(request)
        self.say(f"  {status} {json.dumps(answer)}")
        return answer

    def kill(self, program: str) -> None:
        """SIGKILL."""
        self.say(f"$ kill -KILL {self.programs[program].pid}  # the {program}")
        self._killed.add(program)
        self.programs[program].kill()

    def start_again(self, program: str) -> None:
        """Start a program that was killed."""
        self.say(f"$ {self.programs[program].line}  # again")
        self.programs[program].launch()
        self.programs[program].wait()
        self._killed.remove(program)

    def stop_broker(self) -> None:
        """Stop the broker if it is ours."""
        if (broker := self.servers.own_broker) is None:
            self.say("(The broker is yours, so it keeps running.)")
        else:
            self.say(f"$ kill -TERM {broker.pid}  # the broker")
            broker.stop()

    def start_broker(self) -> None:
        """Start our broker again."""
        if (broker := self.servers.own_broker) is not None:
            self.say("The broker starts again.")
            broker.start()

    # --- What a person sees ---------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"   {text}", flush=True)

    def see(self, program: str, *words: str) -> None:
        """Wait until a line with all of these words is in the program's log, and print it; raises StoryError."""
        line = self.until(
            f"{' '.join(words)} in the log of the {program}", lambda: self._line(program, words)
        )
        self.say(f"{program}: {_PREFIX.sub('', line)}")

    def until(self, what: str, condition: Callable[[], T | None]) -> T:
        """Return the first true value of `condition`; raises StoryError if it does not come, or a program ends."""
        deadline = time.monotonic() + _TIMEOUT
        while not (value := condition()):
            self._check()
            if time.monotonic() > deadline:
                ends = "\n  ".join(each.log_end for each in self.programs.values())
                raise StoryError(f"This did not come: {what}", hint=ends)
            time.sleep(0.05)
        return value

    def count(self, program: str, words: str) -> int:
        """Return how often these words are in the whole log."""
        return self.programs[program].log.count(words)

    def exactly(self, times: int, program: str, words: str) -> None:
        """Raise StoryError if the words, a regular expression, are in the whole log more or less often.

        What came later has to be there already: tasks are sent in the order of the commits.
        """
        found = re.findall(words, self.programs[program].log)
        if len(found) != times:
            raise StoryError(
                f"{words} was to be there {times} times, not {len(found)}",
                hint=self.programs[program].log_end,
            )

    def stay(self, hints: Sequence[str]) -> None:
        """Say what a person may do, and print the programs' logs until a signal comes."""
        print("\nIt goes on until Ctrl-C. Try it, in another terminal:", flush=True)
        self.say(f"cd {self.directory}; export {' '.join(self._exports())}")
        for each in hints:
            self.say(self._filled(each))
        print(flush=True)
        self._mark()
        while True:
            self._check()
            for name in self.programs:
                for line in self._new_lines(name):
                    self.say(f"{name}: {_PREFIX.sub('', line)}")
            time.sleep(0.2)

    def _filled(self, hint: str) -> str:
        """Fill in the programs' addresses."""
        return _PLACE.sub(lambda place: self.programs[place[1]].url, hint)

    def _exports(self) -> Iterator[str]:
        """Yield the variables that the person's shell does not have."""
        yield f"PATH={os.pathsep.join([str(Path(sys.executable).parent), *self.servers.clients, '$PATH'])}"
        for name in self.shown:
            if name not in os.environ:
                yield f"{name}={self.environment[name]}"

    def _check(self) -> None:
        """Raise ServerError if a program has ended that nobody has killed."""
        for name, program in self.programs.items():
            if name not in self._killed:
                program.check()

    def _mark(self) -> None:
        """Let what the logs have until now be in the past."""
        self._seen = {name: len(program.log) for name, program in self.programs.items()}

    def _line(self, program: str, words: Sequence[str]) -> str | None:
        new = self.programs[program].log[self._seen.get(program, 0) :].splitlines()
        return next((line for line in new if all(word in line for word in words)), None)

    def _new_lines(self, program: str) -> list[str]:
        new = self.programs[program].log[self._seen.get(program, 0) :].rpartition("\n")[0]
        self._seen[program] = self._seen.get(program, 0) + len(new)
        return [line for line in new.splitlines() if line]


def _answer(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - a program of ours
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextmanager
def started(name: str, story: Story, kind: DatabaseKind | None) -> Iterator[Stage]:
    """Start servers and programs of an example; stop all in the opposite order at the end. Raises CDCError."""
    directory = _HERE / name
    lines = procfile(directory)
    print(f"{name}, in examples/{name}", flush=True)
    with ExitStack() as cleanup:
        servers = start_servers(cleanup, _say, kind, other_database=story.OTHER_DATABASE)
        files = cleanup.enter_context(tempfile.TemporaryDirectory(prefix=f"cdc-{name}-"))
        environment = _environment(name, servers, story, files)
        if RELEASE in lines:
            _say(f"$ {lines[RELEASE]}")
            run(lines[RELEASE], directory, environment)
        cleanup.callback(forget_listener, servers, environment["CDC_NAME"])
        programs = {each: Program(each, line, directory) for each, line in lines.items() if each != RELEASE}
        _start(cleanup, programs, environment)
        yield Stage(
            directory=directory,
            servers=servers,
            environment=environment,
            shown=list(filter(None, [*_SERVERS, story.OTHER_DATABASE, *story.VARIABLES])),
            programs=programs,
        )


def _environment(name: str, servers: Servers, story: Story, files: str) -> dict[str, str]:
    """Return the variables of the example's programs; those of the user's own system are left out."""
    strangers = ("CDC_", "CELERY_", "CACHE_URL", "DATABASE_URL", "DJANGO_SETTINGS_MODULE", "PYTHONPATH")
    kept = {each: value for each, value in os.environ.items() if not each.startswith(strangers)}
    given = os.environ.get("CDC_NAME")
    return {
        **kept,
        **dict(zip(_SERVERS, (servers.database, servers.broker), strict=True)),
        "CDC_NAME": given or f"example_{name.replace('-', '_')}",
        "PYTHONPATH": str(_HERE.parent),
        "PYTHONUNBUFFERED": "1",
        **({story.OTHER_DATABASE: servers.other_database or ""} if story.OTHER_DATABASE else {}),
        **{each: value.format(files=files) for each, value in story.VARIABLES.items()},
    }


def _start(cleanup: ExitStack, programs: Mapping[str, Program], environment: dict[str, str]) -> None:
    """Start all of them in parallel; each knows the others' addresses as RECEIVER_URL and the like."""
    for name, program in programs.items():
        if program.listens:
            environment[f"{name.upper()}_URL"] = program.url
    for program in programs.values():
        program.environment = environment
        cleanup.callback(program.close)
        _say(f"$ {program.line}")
        program.launch()
    for program in programs.values():
        program.wait()


def _say(text: str) -> None:
    print(f"   {text}", flush=True)
