"""Each block of README.md and docs/ is held to what it shows: no command, option, name or statement in it is wrong.

What a page leads to as a whole is tested beside this, with the servers and programs that it speaks of (`_FOLLOWED`).
A block that nothing here can check carries a mark: tests/support/snippets/blocks.py says which there are.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import tomllib
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest
import redis
import yaml

from harness.embedded_servers import ValkeyServer
from tests.conftest import fresh_database, fresh_mysql_database
from tests.support.snippets import commands, python, settings
from tests.support.snippets.blocks import CHECKOUT, PAGES, Block, blocks_in, blocks_of
from tests.support.snippets.errors import IncompleteCommandError, WrongSnippetError
from tests.support.snippets.sql import problems_of_configuration, problems_on_mysql, problems_on_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.embedded_servers import PostgresServer

# Where a whole page is run, command by command.
_FOLLOWED: Final = {
    "README.md": "tests/acceptance/test_readme.py",
    "docs/django.md": "tests/acceptance/test_django.py",
    "docs/how-to/*.md": "tests/acceptance/test_how_to.py",
    "docs/light.md": "tests/acceptance/test_own_celery_app.py",
    "docs/own-celery-app.md": "tests/acceptance/test_own_celery_app.py",
    "docs/tutorial.md": "tests/acceptance/test_tutorial.py",
}
_COMPARED: Final = {"docs/tutorial.md"}  # what stands below its commands is compared, too
_SERVERS: Final = {"postgresql", "mysql", "mariadb"}
_COMMAND_IN_TEXT: Final = re.compile(
    r"(?<!`)`((?:python -m (?:listener|cdc_tasks)|cdc-listener|cdc-tasks|celery -A)(?: [^`\n]*)?)`(?!`)"
)


def _shell(block: Block, *, has_prompts: bool = False) -> None:
    lines, output = commands.lines_of(block.text, has_prompts=has_prompts)
    if output and "output" not in block.marks and block.page not in _COMPARED:
        raise WrongSnippetError(f"no mark <!-- output: … --> says where this is from: {output[0]}")
    commands.check(lines)


def _console(block: Block) -> None:
    _shell(block, has_prompts=True)


def _ini(block: Block) -> None:
    parser = configparser.ConfigParser(strict=False, allow_no_value=True, interpolation=None)
    parser.read_string(block.text)


def _sql(block: Block) -> None:
    """Look at the names of servers; the servers themselves come later, for all pages at once."""
    if unknown := set(block.servers) - _SERVERS:
        raise WrongSnippetError(f"there is no server {', '.join(unknown)} here")


def _parsed_by(parse: Callable[[str], object]) -> Callable[[Block], None]:
    def check(block: Block) -> None:
        try:
            parse(block.text)
        except ValueError as error:
            raise WrongSnippetError(str(error)) from None

    return check


def _yaml(text: str) -> None:
    try:
        list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


_LANGUAGES: Final[dict[str, Callable[[Block], None]]] = {
    "bash": _shell,
    "console": _console,
    "ini": _ini,
    "json": _parsed_by(json.loads),
    "sh": _shell,
    "sql": _sql,
    "toml": _parsed_by(tomllib.loads),
    "yaml": _parsed_by(_yaml),
}


def _problems(blocks: list[Block]) -> Iterator[str]:
    """Yield what is wrong with the blocks of a page."""
    before: set[str] = set()
    for block in blocks:
        try:
            _check(block, before)
        except (WrongSnippetError, configparser.Error) as error:
            yield f"{block}: {error}"
    shown = [block.text for block in blocks if block.language == "console" and "not run" not in block.marks]
    try:
        commands.check_django(commands.lines_of("".join(shown), has_prompts=True)[0])
    except WrongSnippetError as error:
        yield f"{blocks[0].page}: {error}"


def _check(block: Block, before: set[str]) -> None:
    settings.check_names(block.text)
    if "not run" in block.marks:
        return
    if block.language == "python" and _is_from_an_example(block.text):
        return  # tests/acceptance/test_examples.py runs it
    if block.language == "python":
        python.check(block.text, before)
        before |= python.names_bound_by(block.text)
    elif checker := _LANGUAGES.get(block.language):
        checker(block)
    elif "output" not in block.marks:
        raise WrongSnippetError(
            f"nothing here can check the language {block.language or '(none)'}: "
            "mark the block with <!-- output: … --> or <!-- not run: … -->"
        )


def _is_from_an_example(text: str) -> bool:
    """Return whether these lines stand in a file of an example, one below the other."""
    lines = _stripped(text)
    return any(f"\n{lines}\n" in f"\n{each}\n" for each in _examples())


@cache
def _examples() -> list[str]:
    return [_stripped(file.read_text()) for file in (CHECKOUT / "examples").rglob("*.py")]


def _stripped(text: str) -> str:
    return "\n".join(filter(None, map(str.strip, text.splitlines())))


@cache
def _all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


@pytest.mark.parametrize("page", PAGES)
def test_each_block_of_a_page_is_right_or_marked(page: str) -> None:
    wrong = list(_problems(blocks_of(page)))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_variables_and_commands_in_the_text_of_a_page_exist(page: str) -> None:
    text = (CHECKOUT / page).read_text()
    settings.check_names(text)
    for command in _COMMAND_IN_TEXT.findall(text):
        with suppress(IncompleteCommandError):
            commands.check_line(command)


def test_the_pages_that_a_test_follows_are_there_and_the_test_speaks_of_them() -> None:
    for pattern, test in _FOLLOWED.items():
        name = pattern.rpartition("/")[2].removesuffix(".md").replace("*", "how-to")
        assert any(fnmatch(page, pattern) for page in PAGES), pattern
        assert name in (CHECKOUT / test).read_text(), (pattern, test)


def test_each_mark_that_names_a_test_names_one_that_is_there() -> None:
    for block in _all_blocks():
        for name in re.findall(r"\btests/[\w/]+\.py\b", " ".join(block.marks.values())):
            assert (CHECKOUT / name).exists(), f"{block}: {name}"


def _blocks_on(server: str, language: str) -> dict[str, list[Block]]:
    """Return by page the blocks that are to be tried on a server."""
    found: dict[str, list[Block]] = {}
    for block in _all_blocks():
        if block.language == language and server in block.servers and "not run" not in block.marks:
            found.setdefault(block.page, []).append(block)
    return found


def test_each_statement_for_postgresql_runs_there(postgres_server: PostgresServer) -> None:
    with fresh_database(postgres_server) as database:
        pages = _blocks_on("postgresql", "sql").values()
        wrong = [problem for blocks in pages for problem in problems_on_postgres(blocks, database)]
    assert len(pages) >= 6
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("server", ["mysql", "mariadb"])
def test_each_statement_and_setting_for_mysql_is_known_there(
    server: str, request: pytest.FixtureRequest
) -> None:
    with fresh_mysql_database(request.getfixturevalue(f"{server}_server")) as database:
        wrong = [
            *(
                problem
                for blocks in _blocks_on(server, "sql").values()
                for problem in problems_on_mysql(blocks, database)
            ),
            *(
                problem
                for blocks in _blocks_on(server, "ini").values()
                for block in blocks
                for problem in problems_of_configuration(block, database)
            ),
        ]
    assert not wrong, "\n".join(wrong)


def test_each_command_for_redis_is_taken_by_a_server() -> None:
    tried = 0
    with (
        ValkeyServer() as server,
        redis.Redis.from_url(server.url) as client,
    ):  # its own: some commands change settings
        for block in _all_blocks():
            for command in re.findall(r"redis-cli ([^;|\n`]+)", block.text):
                client.execute_command(*shlex.split(command, comments=True))
                tried += 1
    assert tried


@pytest.mark.parametrize(
    ("snippet", "told"),
    [
        ("```console\n$ python -m listener backfil orders\n```", "backfil"),
        ("```console\n$ python -m listener backfill orders --quick\n```", "--quick"),
        ("```console\n$ python -m listener backfill orders --rate often\n```", "often"),
        ("```console\n$ celery -A shop worker --concurency 2\n```", "--concurency"),
        ("```console\n$ python manage.py migrate --at-once\n```", "--at-once"),
        ("```console\n$ export CDC_ROUTE=shop:setup\n```", "CDC_ROUTE"),
        ("```console\n$ export CDC_ROUTES=shop.routes\n```", "CDC_ROUTES"),
        ("```console\n$ pip install 'cdc-tasks[everything]'\n```", "everything"),
        ("```console\n$ make everything\n```", "everything"),
        ("```console\n$ make demo ARGS=--never\n```", "--never"),
        ("```console\n$ unheard-of --help\n```", "unheard-of"),
        ("```console\n$ echo 'one | wc\n```", "unexpected EOF"),
        ("```console\n$ python -m listener status\nno listener\n```", "no listener"),
        ("```\nwhat is it?\n```", "(none)"),
        ("```cobol\nSTOP RUN.\n```", "cobol"),
        ("```yaml\na: b: c\n```", "mapping values"),
        ("```json\n{'a': 1}\n```", "property name"),
        ("```ini\nlog_bin\n```", "no section"),
        ("```python\nrouter.register('public'\n```", "never closed"),
        ("```python\nfrom cdc_tasks import on_changed\n```", "on_changed"),
        ("```python\nimport cdc_tasks.webb\n```", "webb"),
        ("```python\ncdc_tasks.enqeue(session, task)\n```", "task"),
        ("```python\ncdc_tasks.enqeue(session, order)\n```", "enqeue"),
        ("```python\nrouter.register('public', 'orders', INSERT, 'a.b', whenn=became('a', 1))\n```", "whenn"),
        ("<!-- on: oracle -->\n```sql\nSELECT 1 FROM dual;\n```", "oracle"),
    ],
)
def test_what_is_wrong_is_told(snippet: str, told: str) -> None:
    (block,) = blocks_in(snippet, "page")
    (problem,) = _problems([block])
    assert told in problem
