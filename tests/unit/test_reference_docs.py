"""docs/reference.md lists the public names, the events of the log and the codes: all of them, and no others."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]
_PAGE = (_CHECKOUT / "docs" / "reference.md").read_text()
_NAMES = re.compile(r"`([\w.:]+)`")

_LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical")} | {"exception": "error"}
# Codes that are made of a variable.
_MADE_CODES = {
    "f'{what}_away'": {"broker_away", "cache_away"},
    "f\"privilege_{what.lower().replace(' ', '_')}\"": {
        "privilege_replication_client",
        "privilege_replication_slave",
    },
}
# No code, or that of another error or finding.
_OTHERS_CODE = re.compile(r"None|\w+\.code|code or None")
# `_log_once(*trouble)`: the class whose first field is the event.
_UNPACKED = {"trouble": "Trouble"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- The page -------------------------------------------------------------------------------------------


def _section(title: str) -> str:
    """Return what is below a heading, up to the next one of its level or above."""
    level, _, _ = title.partition(" ")
    _, _, rest = _PAGE.partition(f"\n{title}\n")
    assert rest, f"docs/reference.md has no section {title}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def _rows(title: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the section's tables, without heads."""
    for line in _section(title).splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def _listed(title: str) -> set[str]:
    """Return the names in the first cells of a section's tables; fail if one is there twice."""
    names = [name for row in _rows(title) for name in _NAMES.findall(row[0])]
    assert sorted(names) == sorted(set(names))
    return set(names)


# --- The sources ----------------------------------------------------------------------------------------


class _Module:
    """A module's syntax tree, with what encloses each node."""

    def __init__(self, path: Path) -> None:
        self.package = path.relative_to(_CHECKOUT).parts[0]
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.nodes = list(ast.walk(self.tree))
        self.has_log = "log = structlog.get_logger()" in map(ast.unparse, self.tree.body)
        self._parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def enclosing(self, node: ast.AST, kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> ast.AST | None:
        found = self._parents.get(node)
        while found is not None and not isinstance(found, kind):
            found = self._parents.get(found)
        return found

    def function_of(self, node: ast.AST) -> _Function | None:
        found = self.enclosing(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        assert found is None or isinstance(found, _Function)
        return found

    def calls(self, name: str) -> Iterator[ast.Call]:
        return (each for each in self.nodes if isinstance(each, ast.Call) and _called(each) == name)


@cache
def _modules() -> list[_Module]:
    files = [file for package in ("cdc_tasks", "listener") for file in (_CHECKOUT / package).rglob("*.py")]
    return [_Module(file) for file in sorted(files)]


def _called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    return str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))


def _parameters(function: _Function) -> list[str]:
    return [each.arg for each in function.args.args if each.arg not in {"self", "cls"}]


def _callers(module: _Module, function: _Function) -> Iterator[tuple[_Module, ast.Call]]:
    """Yield the calls of a function of this module, or, everywhere, of the class whose constructor it is."""
    name, places = function.name, [module]
    if name == "__init__":
        owner = module.enclosing(function, ast.ClassDef)
        assert isinstance(owner, ast.ClassDef)
        name, places = owner.name, _modules()
    for place in places:
        for call in place.calls(name):
            yield place, call


def _strings(module: _Module, value: ast.expr) -> set[str]:
    """Return what an expression may be, as far as it is written in the sources."""
    match value:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=body, orelse=orelse):
            return _strings(module, body) | _strings(module, orelse)
        case ast.JoinedStr():
            return _MADE_CODES[ast.unparse(value)]
        case ast.Name(id=name):
            return _strings_of_variable(module, value, name)
    return _union(module, _values_behind(module, value))


def _values_behind(module: _Module, value: ast.expr) -> list[ast.expr]:
    """Return what is assigned to an attribute of `self`, or what a function of the module returns."""
    match value:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return _assigned(module.tree, f"self.{name}")
        case ast.Call(func=ast.Name(id=name)):
            functions = [each for each in module.nodes if isinstance(each, _Function) and each.name == name]
            nodes = [each for function in functions for each in ast.walk(function)]
            return [each.value for each in nodes if isinstance(each, ast.Return) and each.value]
    return []


def _union(module: _Module, values: list[ast.expr]) -> set[str]:
    return {text for value in values for text in _strings(module, value)}


def _strings_of_variable(module: _Module, at: ast.expr, name: str) -> set[str]:
    function = module.function_of(at)
    if function is None:
        return set()
    found = _union(module, _assigned(function, name))
    for place, call in _callers(module, function):
        for value in _argument(call, function, name):
            found |= _strings(place, value)
    keyword_only = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    defaults = [value for each, value in keyword_only if each.arg == name and value is not None]
    return found | _union(module, defaults)


def _assigned(tree: ast.AST, name: str) -> list[ast.expr]:
    """Return what is assigned to a variable."""
    found = []
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            assert isinstance(node, ast.Assign)
            if ast.unparse(target) == name:
                found.append(node.value)
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                found += [value for each, value in pairs if ast.unparse(each) == name]
    return found


def _argument(call: ast.Call, function: _Function, name: str) -> Iterator[ast.expr]:
    """Yield what a call gives for a parameter."""
    yield from (each.value for each in call.keywords if each.arg == name)
    names = _parameters(function)
    index = names.index(name) if name in names else len(call.args)
    if index < len(call.args) and not isinstance(call.args[0], ast.Starred):
        yield call.args[index]


# --- Events ---------------------------------------------------------------------------------------------


@dataclass
class _Event:
    levels: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


def _events(package: str) -> dict[str, _Event]:
    found: dict[str, _Event] = defaultdict(_Event)
    for module in _modules():
        for call in module.nodes if module.package == package and module.has_log else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[0] == "log":
                logged = list(_logged(module, call))
                assert logged, f"{module.path}:{call.lineno}: which event is this?"
                for name, keys in logged:
                    found[name].levels.add(_LEVELS[_called(call)])
                    found[name].keys |= keys
    return dict(found)


def _logged(module: _Module, call: ast.Call) -> Iterator[tuple[str, set[str]]]:
    """Yield the events of one call of the logger, each with its keys."""
    event, function = call.args[0], module.function_of(call)
    own = {each.arg for each in call.keywords if each.arg}
    for each in call.keywords:
        own |= _keys(module, each.value) if each.arg is None else set()
    if names := _strings(module, event) if not isinstance(event, ast.Name) else set():
        extra = _extra_keys(module, call, None)
        yield from ((name, own | extra) for name in names)
        return
    assert function is not None, f"{module.path}:{call.lineno}: which event is this?"
    assert isinstance(event, ast.Name), f"{module.path}:{call.lineno}: which event is this?"
    for place, caller in _callers(module, function):
        for value in _argument(caller, function, event.id):
            yield from ((name, own | _extra_keys(module, call, caller)) for name in _strings(place, value))
        for argument in caller.args:
            if isinstance(argument, ast.Starred):
                yield from ((name, own) for name in _unpacked(ast.unparse(argument.value)))


def _unpacked(variable: str) -> set[str]:
    calls = [(module, call) for module in _modules() for call in module.calls(_UNPACKED[variable])]
    return {name for module, call in calls for name in _strings(module, call.args[0])}


def _keys(module: _Module, value: ast.expr) -> set[str]:
    """Return the keys of a dict that is given as `**value`."""
    function = module.function_of(value)
    values = [value, *(_assigned(function, ast.unparse(value)) if function else [])]
    inner = [each for one in values for each in ast.walk(one) if isinstance(each, ast.Dict)]
    return {key.value for each in inner for key in each.keys if isinstance(key, ast.Constant)}  # type: ignore[misc]


def _extra_keys(module: _Module, call: ast.Call, caller: ast.Call | None) -> set[str]:
    """Return the keys that the function's callers, or one of them, give as `**more`."""
    function = module.function_of(call)
    if function is None or function.args.kwarg is None:
        return set()
    callers = [caller] if caller else [each for _, each in _callers(module, function)]
    given = {each.arg for one in callers for each in one.keywords if each.arg}
    return given - set(_parameters(function))


# --- Codes ----------------------------------------------------------------------------------------------


def _class_codes() -> set[str]:
    """Return the codes of the subclasses of CDCError."""
    classes = [node for module in _modules() for node in module.nodes if isinstance(node, ast.ClassDef)]
    ours, before = {"CDCError"}, 0
    while len(ours) > before:
        before = len(ours)
        ours |= {each.name for each in classes if ours & {ast.unparse(base) for base in each.bases}}
    found = set()
    for each in classes:
        if each.name in ours - {"CDCError"}:
            own = [node.value for node in each.body if isinstance(node, ast.Assign) and _is_code(node)]
            found |= {ast.literal_eval(value) for value in own} or {_derived_code(each.name)}
    return found


def _derived_code(name: str) -> str:
    kind: type[CDCError] = type(name, (CDCError,), {})
    return kind.code


def _is_code(node: ast.Assign) -> bool:
    return [ast.unparse(target) for target in node.targets] == ["code"]


def _codes(*, of_findings: bool) -> set[str]:
    """Return the codes that are given where a finding, or an error, is made."""
    found = set()
    for module in _modules():
        for call in module.nodes:
            if isinstance(call, ast.Call) and _called(call) not in _LEVELS:
                is_finding = "Finding" in {_called(call), *map(ast.unparse, call.args[:1])}
                if is_finding == of_findings:
                    given = [each.value for each in call.keywords if each.arg == "code"]
                    for value in given + _positional_code(module, call):
                        codes = _strings(module, value)
                        assert codes or _OTHERS_CODE.fullmatch(ast.unparse(value)), (
                            f"{module.path}:{call.lineno}"
                        )
                        found |= codes
    return found


def _positional_code(module: _Module, call: ast.Call) -> list[ast.expr]:
    """Return the code in an entry of a table of errors: of a class with the fields `error` and `code`."""
    for each in module.nodes:
        if isinstance(each, ast.ClassDef) and each.name == _called(call):
            fields = [ast.unparse(node.target) for node in each.body if isinstance(node, ast.AnnAssign)]
            if {"error", "code"} <= set(fields):
                return call.args[fields.index("code") :][:1]
    return []


def _alarm_codes() -> set[str]:
    nodes = [node for module in _modules() for node in module.nodes]
    functions = [
        node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.endswith("_alarms")
    ]
    yields = [node.value for each in functions for node in ast.walk(each) if isinstance(node, ast.Yield)]
    return {str(ast.literal_eval(value.elts[0])) for value in yields if isinstance(value, ast.Tuple)}


def _public(module: str) -> set[str]:
    path = _CHECKOUT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    (names,) = _assigned(ast.parse(file.read_text()), "__all__")
    return set(ast.literal_eval(names))


# --- The tests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["cdc_tasks", "cdc_tasks.notify", "cdc_tasks.testing", "cdc_tasks.celery"])
def test_the_page_lists_every_public_name_and_no_other(module: str) -> None:
    assert _listed(f"### `{module}`") == _public(module)


def test_the_page_lists_the_names_of_the_listener_and_no_other() -> None:
    assert _public("listener") == _public("listener.router")
    assert _listed("### `listener` and `listener.router`") == _public("listener.router")


def test_the_page_lists_the_public_names_for_django() -> None:
    names = _public("cdc_tasks.django") | _public("cdc_tasks.django.testing")
    assert _listed("### `cdc_tasks.django` and `cdc_tasks.django.testing`") == names


@pytest.mark.parametrize(
    ("title", "package"), [("### The listener", "listener"), ("### The workers", "cdc_tasks")]
)
def test_the_page_lists_every_event_with_its_levels_and_keys_and_no_other(title: str, package: str) -> None:
    logged = _events(package)
    assert _listed(title) == logged.keys()
    for names, levels, _, *keys in _rows(title):
        for name in _NAMES.findall(names):
            documented = _Event(set(levels.split(", ")), set(_NAMES.findall("".join(keys))))
            assert (name, documented) == (name, logged[name])


def test_every_logger_of_structlog_is_found() -> None:
    assert [each.path for each in _modules() if any(each.calls("get_logger")) and not each.has_log] == [
        _CHECKOUT
        / "cdc_tasks"
        / "broker"
        / "redis"
        / f"{name}.py"  # kombu's loggers: their lines are no events
        for name in ("later", "older_kombu", "transport", "unacknowledged", "wake_up")
    ]


def test_events_and_keys_are_snake_case() -> None:
    for package in ("listener", "cdc_tasks"):
        for name, event in _events(package).items():
            assert [each for each in (name, *event.keys) if not re.fullmatch(r"[a-z][a-z0-9_]*", each)] == []


def test_the_page_lists_every_code_of_an_error_and_no_other() -> None:
    assert _listed("## Error codes") == _class_codes() | _codes(of_findings=False)


def test_the_page_lists_every_code_of_a_finding_and_no_other() -> None:
    assert _listed("## Finding codes") == _codes(of_findings=True)


def test_the_page_lists_every_code_of_an_alarm_and_no_other() -> None:
    assert _listed("## Alarm codes") == _alarm_codes()


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    for page, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", _PAGE):
        text = (_CHECKOUT / "docs" / (page or "reference.md")).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, (
            page,
            anchor,
        )
