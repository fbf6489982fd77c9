"""The demo's output: each step with its SQL, and each effect when it happens."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from cdc_tasks.words import counted
from demo.observer import CacheChanged, TaskEnded, TaskReceived

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from demo.observer import Message, Observation
    from demo.stack import Stack

__all__ = ["IDEAS", "Narrator", "Since"]

_WIDTH: Final = 110
_MOST_ROWS: Final = 50  # of a result
_LONGEST: Final = 700  # characters shown of a cached value
_STATES: Final = {"SUCCESS": "green", "FAILURE": "bold red", "RETRY": "yellow"}
_SERVICES: Final = {"slack": ("Slack", "magenta"), "teams": ("Teams", "blue")}
IDEAS: Final = (
    "INSERT INTO tickets (title, assigned_to_id) VALUES ('My own ticket', 2)",
    "UPDATE tickets SET status = 'closed' WHERE id = 1",
    "INSERT INTO roles (name) VALUES ('Auditor')",
)


class Since(NamedTuple):
    """The moment from which the time of an effect is counted."""

    at: float  # time.monotonic()
    what: str  # what happened then: "commit"


class Narrator:
    """Prints for a terminal, or plain text for a log."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal or self._console.width > _WIDTH:
            self._console.width = _WIDTH
        self._steps = 0
        self._pages = ""  # the console's address

    @property
    def is_interactive(self) -> bool:
        """Whether a person is watching, who needs pauses."""
        return self._console.is_terminal

    def starting(self, what: str) -> None:
        self._console.print(f"[dim]Starting[/] {what} …")

    def using(self, address: str, variable: str) -> None:
        """Print an address that the environment names, before the demo uses it."""
        self._console.print(f"[dim]Using[/] {escape(address)} [dim]({variable})[/]", soft_wrap=True)

    def note_of_tables(self) -> None:
        """Print what the demo does in the user's own database."""
        self._console.print("It creates the tables of the help desk there, and removes them at the end.")

    def running(self, stack: Stack, seconds: float) -> None:
        """Print the addresses of the pages, the console's first."""
        self._console.print(
            f"All running after {seconds:.1f} s. Open the console, and follow the story there:\n"
        )
        self._pages = stack.console.url
        for label, url, what in (
            ("Console", stack.console.url, "its state, the changes, what they fired, what failed"),
            ("SQL", stack.box.url, "a box for your own SQL, and its effects"),
            ("Inbox", stack.inbox.url, "the messages, instead of Slack and Teams"),
            ("Flower", stack.flower.url, "Celery's tasks and workers"),
            ("Metrics", stack.listener.url, "the listener's numbers for Prometheus"),
        ):
            self._line(label, "cyan", Text.assemble((url, "bold underline"), (f"  {what}", "dim")))

    def step(self, title: str, *, sql: str | None = None) -> None:
        """Begin a step: print its title and its SQL."""
        self._steps += 1
        title = f" {self._steps}  {title} "
        self._console.print("", Rule(Text(title, style="bold"), align="left", style="dim"))
        if sql:
            self._line(
                "SQL",
                "yellow",
                Syntax(sql, "sql", theme="ansi_dark", background_color="default", word_wrap=True),
            )

    def look(self, path: str, what: str) -> None:
        """Print which page of the console shows the step, and what to look for."""
        self._line("look", "cyan", Text.assemble((f"{self._pages}{path}", "underline"), (f"  {what}", "dim")))

    def python(self, code: str) -> None:
        """Print the application's code that the step runs."""
        self._line("Python", "yellow", Syntax(code, "python", theme="ansi_dark", background_color="default"))

    def shell(self, command: str) -> None:
        """Print the shell command that the step performs."""
        self._line("$", "yellow", Text(command, style="bold"))

    def show(self, observation: Observation, *, since: Since | None = None) -> None:
        """Print an observation, and how long after `since` it happened."""
        match observation:
            case TaskReceived():
                self._received(observation)
            case TaskEnded():
                self._ended(observation)
            case CacheChanged():
                self._cache(observation, _after(since, observation.at))
            case _:
                self._message(observation, _after(since, observation.at))

    def clock(self) -> None:
        """Begin a section that is not a step, with the time of day."""
        title = Text(f" {datetime.now().astimezone():%H:%M:%S} ", style="bold")
        self._console.print("", Rule(title, align="left", style="dim"))

    def note(self, text: str) -> None:
        """Print a summary line."""
        self._line("", "", Text(text))

    def rows(self, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Print the result of a query."""
        table = Table(*map(escape, columns), box=box.SIMPLE)
        for row in rows[:_MOST_ROWS]:
            table.add_row(*("NULL" if each is None else escape(str(each)) for each in row))
        self._console.print(table)
        more = f", the first {_MOST_ROWS} are shown" if len(rows) > _MOST_ROWS else ""
        self.note(f"{counted(len(rows), 'row')}{more}")

    def refused(self, text: str) -> None:
        """Print the database's error."""
        self._line("error", "bold red", Text(text))

    def proof(self, text: str) -> None:
        """Print what the step proves."""
        self._line("✓", "bold green", Text(text, style="bold green"))

    def invite(self, stack: Stack, *, at_prompt: bool) -> None:
        """Print statements to try by hand: at the demo's own prompt, or in another terminal."""
        title = Text(f" Try it yourself{'' if at_prompt else ', in another terminal'} ", style="bold")
        self._console.print("", Rule(title, align="left", style="dim"))
        for statement in IDEAS:
            line = f"{statement};" if at_prompt else f'{stack.addresses.sql} "{statement}"'
            self._console.print(line, style="bold", soft_wrap=True, markup=False)
        if at_prompt:
            self._console.print("\nOr in another terminal:")
            self._console.print(f'{stack.addresses.sql} "…"', soft_wrap=True, markup=False)
        self._console.print(
            f"Or in a browser, with the changes, the tasks and the messages beside it: {stack.box.url}"
        )
        self._console.print(f"\nThe effects appear here, at {stack.inbox.url} and at {stack.console.url}.")
        self._console.print("Ctrl-C ends the demo and removes everything.\n")

    def ending(self) -> None:
        self._console.print("\n[dim]Stopping the console, the listener, Flower, the worker, the servers …[/]")

    def ended(self) -> None:
        self._console.print("[dim]Nothing is left running.[/]")

    def _received(self, task: TaskReceived) -> None:
        if task.arguments.startswith("<"):  # the listener sent it: the arguments name the change
            table, event, position = task.arguments.strip("<>").rsplit(" ", 2)
            change = Text.assemble((f"{event} ", "bold"), f"of {table}", (f"  at {position}", "dim"))
            self._line("change", "cyan", change)

    def _ended(self, task: TaskEnded) -> None:
        text = Text.assemble(
            f"{task.name}  ", (task.state, _STATES[task.state]), (f"  {task.outcome}", "dim")
        )
        ran = "" if task.seconds is None else f"ran {task.seconds * 1000:.0f} ms"
        self._line("task", "cyan", text, Text(ran, style="dim"))

    def _message(self, message: Message, after: Text | None) -> None:
        label, style = _SERVICES[message.service]
        self._line(label, f"bold {style}", Text.assemble((message.to, "bold"), f"  {message.text}"), after)

    def _cache(self, change: CacheChanged, after: Text | None) -> None:
        self._line("cache", "bold green", Text(change.key, style="bold"), after)
        for when, value in (("before", change.before), ("after", change.after)):
            shown = "(no such key)" if value is None else json.dumps(json.loads(value), ensure_ascii=False)
            text = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}… ({len(shown)} characters)"
            self._line(when, "dim", Text(text, style="dim" if when == "before" else ""))

    def _line(self, label: str, style: str, content: RenderableType, right: Text | None = None) -> None:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=8, justify="right", style=style, no_wrap=True)
        line.add_column(ratio=1, overflow="fold")
        line.add_column(justify="right", no_wrap=True)
        line.add_row(label, content, right)
        self._console.print(line)


def _after(since: Since | None, at: float) -> Text | None:
    if since is None or at < since.at:  # an effect of something earlier
        return None
    return Text(f"{(at - since.at) * 1000:.0f} ms after {since.what}", style="bold green")
