"""What the sources say: which events they log, and which codes errors and findings have.

Read from the syntax trees, so that an event that is rarely logged is found too.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CHECKOUT",
    "Event",
    "Module",
    "alarm_codes",
    "class_words",
    "error_codes",
    "events",
    "finding_codes",
    "hints",
    "module_named",
    "modules",
    "public_names",
]

CHECKOUT: Final = Path(__file__).resolve().parents[1]

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


# --- The sources ----------------------------------------------------------------------------------------


class Module:
    """A module's syntax tree, with what encloses each node."""

    def __init__(self, path: Path) -> None:
        self.package = path.relative_to(CHECKOUT).parts[0]
        self.path = path
        self.name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text()
        self.tree = ast.parse(text)
        self._lines = text.splitlines()
        self.nodes = list(ast.walk(self.tree))
        self.classes = [each for each in self.nodes if isinstance(each, ast.ClassDef)]
        self.functions = [each for each in self.nodes if isinstance(each, _Function)]
        self.all_calls = [each for each in self.nodes if isinstance(each, ast.Call)]
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

    def comment(self, node: ast.stmt) -> str:
        """Return the remark on the node's last line, or else the one on the lines above it."""
        _, _, behind = self._lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition(
            "# "
        )
        if behind:
            return "" if behind.startswith(("noqa", "type:")) else behind
        above: list[str] = []
        for line in reversed(self._lines[: node.lineno - 1]):
            if not line.strip().startswith("# "):
                break
            above.insert(0, line.strip()[2:])
        return " ".join(above)

    def calls(self, name: str) -> Iterator[ast.Call]:
        return (each for each in self.all_calls if _called(each) == name)


@cache
def modules() -> list[Module]:
    files = [file for package in ("cdc_tasks", "listener") for file in (CHECKOUT / package).rglob("*.py")]
    return [Module(file) for file in sorted(files)]


def module_named(name: str, *, or_none: bool = False) -> Any:
    """Return the module with this name; None, or LookupError, if there is none."""
    found = next((each for each in modules() if each.name == name), None)
    if found is None and not or_none:
        raise LookupError(f"{name} is no module of cdc_tasks or listener")
    return found


def _called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    return str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))


def _parameters(function: _Function) -> list[str]:
    return [each.arg for each in function.args.args if each.arg not in {"self", "cls"}]


def _callers(module: Module, function: _Function) -> Iterator[tuple[Module, ast.Call]]:
    """Yield the calls of a function of this module, or, everywhere, of the class whose constructor it is."""
    name, places = function.name, [module]
    if name == "__init__":
        owner = module.enclosing(function, ast.ClassDef)
        assert isinstance(owner, ast.ClassDef)
        name, places = owner.name, modules()
    for place in places:
        for call in place.calls(name):
            yield place, call


def _strings(module: Module, value: ast.expr) -> set[str]:
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


def _values_behind(module: Module, value: ast.expr) -> list[ast.expr]:
    """Return what is assigned to an attribute of `self`, or what a function of the module returns."""
    match value:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return _assigned(module.tree, f"self.{name}")
        case ast.Call(func=ast.Name(id=name)):
            functions = [each for each in module.functions if each.name == name]
            nodes = [each for function in functions for each in ast.walk(function)]
            return [each.value for each in nodes if isinstance(each, ast.Return) and each.value]
    return []


def _union(module: Module, values: list[ast.expr]) -> set[str]:
    return {text for value in values for text in _strings(module, value)}


def _strings_of_variable(module: Module, at: ast.expr, name: str) -> set[str]:
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
class Event:
    """With which levels and fields an event is logged."""

    levels: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


@cache
def events(package: str) -> dict[str, Event]:
    found: dict[str, Event] = defaultdict(Event)
    for module in modules():
        for call in module.all_calls if module.package == package and module.has_log else ():
            if ast.unparse(call.func).rpartition(".")[0] == "log":
                logged = list(_logged(module, call))
                assert logged, f"{module.path}:{call.lineno}: which event is this?"
                for name, keys in logged:
                    found[name].levels.add(_LEVELS[_called(call)])
                    found[name].keys |= keys
    return dict(found)


def _logged(module: Module, call: ast.Call) -> Iterator[tuple[str, set[str]]]:
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
    calls = [(module, call) for module in modules() for call in module.calls(_UNPACKED[variable])]
    return {name for module, call in calls for name in _strings(module, call.args[0])}


def _keys(module: Module, value: ast.expr) -> set[str]:
    """Return the keys of a dict that is given as `**value`."""
    function = module.function_of(value)
    values = [value, *(_assigned(function, ast.unparse(value)) if function else [])]
    inner = [each for one in values for each in ast.walk(one) if isinstance(each, ast.Dict)]
    return {key.value for each in inner for key in each.keys if isinstance(key, ast.Constant)}  # type: ignore[misc]


def _extra_keys(module: Module, call: ast.Call, caller: ast.Call | None) -> set[str]:
    """Return the keys that the function's callers, or one of them, give as `**more`."""
    function = module.function_of(call)
    if function is None or function.args.kwarg is None:
        return set()
    callers = [caller] if caller else [each for _, each in _callers(module, function)]
    given = {each.arg for one in callers for each in one.keywords if each.arg}
    return given - set(_parameters(function))


# --- Codes ----------------------------------------------------------------------------------------------


@cache
def error_codes() -> set[str]:
    """Return the codes of all errors: of the subclasses of CDCError, and those that are given where one is made."""
    return {code for module in modules() for code in _class_codes(module)} | _codes(of_findings=False)


@cache
def finding_codes() -> set[str]:
    """Return the codes of the findings of `check`."""
    return _codes(of_findings=True)


def _class_codes(module: Module) -> set[str]:
    return {code for node in module.classes for code in _codes_of_class(node)}


@cache
def _error_classes() -> set[str]:
    """Return the names of CDCError and its subclasses."""
    classes = [each for module in modules() for each in module.classes]
    ours, before = {"CDCError"}, 0
    while len(ours) > before:
        before = len(ours)
        ours |= {each.name for each in classes if ours & {ast.unparse(base) for base in each.bases}}
    return ours


def _derived_code(name: str) -> str:
    kind: type[CDCError] = type(name, (CDCError,), {})
    return kind.code


def _is_code(node: ast.Assign) -> bool:
    return [ast.unparse(target) for target in node.targets] == ["code"]


def _codes(*, of_findings: bool) -> set[str]:
    """Return the codes that are given where a finding, or an error, is made."""
    found = set()
    for module in modules():
        for call in module.all_calls:
            if _called(call) not in _LEVELS:
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


def _positional_code(module: Module, call: ast.Call) -> list[ast.expr]:
    """Return the code in an entry of a table of errors: of a class with the fields `error` and `code`."""
    for each in module.classes:
        if each.name == _called(call):
            fields = [ast.unparse(node.target) for node in each.body if isinstance(node, ast.AnnAssign)]
            if {"error", "code"} <= set(fields):
                return call.args[fields.index("code") :][:1]
    return []


def alarm_codes() -> set[str]:
    """Return the codes of the alarms of `status`."""
    functions = [each for module in modules() for each in module.functions if each.name.endswith("_alarms")]
    yields = [node.value for each in functions for node in ast.walk(each) if isinstance(node, ast.Yield)]
    return {str(ast.literal_eval(value.elts[0])) for value in yields if isinstance(value, ast.Tuple)}


def public_names(module: str) -> set[str]:
    (names,) = _assigned(module_named(module).tree, "__all__")
    return set(ast.literal_eval(names))


# --- Words ----------------------------------------------------------------------------------------------


@cache
def class_words() -> dict[str, str]:
    """Return what each error class says of itself, by its code: the first paragraph of the docstring."""
    return {code: _paragraph(each) for code, each in _classes_by_code().items()}


@cache
def _classes_by_code() -> dict[str, ast.ClassDef]:
    classes = [each for module in modules() for each in module.classes]
    return {code: each for each in classes for code in sorted(_codes_of_class(each))}


def _codes_of_class(each: ast.ClassDef) -> set[str]:
    if each.name not in _error_classes() - {"CDCError"}:
        return set()
    own = [node.value for node in each.body if isinstance(node, ast.Assign) and _is_code(node)]
    return {ast.literal_eval(value) for value in own} or {_derived_code(each.name)}


def _paragraph(each: ast.ClassDef) -> str:
    return " ".join((ast.get_docstring(each) or "").split("\n\n", maxsplit=1)[0].split())


@cache
def hints() -> dict[str, list[str]]:
    """Return the hints that are given with each code, as far as they are written in the sources.

    What is known only when it happens stands as `…`.
    """
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for module in modules():
        for call in module.all_calls:
            for code, hint in _hinted(module, call):
                for text in _texts(module, hint):
                    if text.strip(" …."):
                        found[code].setdefault(text.strip())
    return {code: list(texts) for code, texts in found.items()}


def _hinted(module: Module, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Yield the codes of an error or a finding, each with its hint."""
    named = {each.arg: each.value for each in call.keywords if each.arg}
    if not ("hint" in named or len(call.args) > 1):
        return
    fields = _fields_of(module, _called(call))
    given = dict(zip(fields, call.args, strict=False)) | named
    if (hint := given.get("hint")) is None:
        return
    code = given.get("code")
    if code is not None and not (isinstance(code, ast.Constant) and code.value is None):
        yield from ((each, hint) for each in sorted(_strings(module, code)))
        return
    error = given.get("error")
    name = ast.unparse(error) if error is not None else _called(call)
    yield from ((each, hint) for each in _codes_by_class().get(name, ()))


@cache
def _fields_of(module: Module, name: str) -> list[str]:
    """Return the names of what a table's entry, or a helper of this module, takes by position."""
    for found in (each for each in module.classes if each.name == name):
        return [ast.unparse(each.target) for each in found.body if isinstance(each, ast.AnnAssign)]
    for function in (each for each in module.functions if each.name == name):
        return _parameters(function)
    return []


@cache
def _codes_by_class() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for code, each in _classes_by_code().items():
        found[each.name] = (*found.get(each.name, ()), code)
    return found


def _texts(module: Module, value: ast.expr) -> list[str]:  # noqa: PLR0911 - a table of cases
    """Return the texts that this may be, each with `…` for what is known only when it happens."""
    match value:
        case ast.Constant(value=str(text)):
            return [_FIELD.sub("…", text)]
        case ast.JoinedStr(values=parts):
            return _joined([_texts(module, each) for each in parts])
        case ast.FormattedValue(value=ast.Name(id=name) as inner) if name.isupper():
            return _texts(module, inner) or ["…"]
        case ast.FormattedValue():
            return ["…"]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _joined([_texts(module, left), _texts(module, right)])
        case ast.IfExp(body=body, orelse=orelse):
            return _texts(module, body) + _texts(module, orelse)
        case ast.Call(func=ast.Attribute(value=inner, attr="format")):
            return _texts(module, inner)
        case ast.Name(id=name):
            return [text for each in _values_of(module, value, name) for text in _texts(module, each)]
    return []


_FIELD: Final = re.compile(r"\{\w*\}")


def _joined(parts: list[list[str]]) -> list[str]:
    return ["".join(each) for each in product(*(texts or ["…"] for texts in parts))]


def _values_of(module: Module, at: ast.expr, name: str) -> list[ast.expr]:
    """Return what is assigned to a variable where it is used."""
    function = module.function_of(at)
    values = _assigned(function, name) if function else []
    before = [each for each in values if each.lineno < at.lineno]
    statement = module.enclosing(at, ast.stmt)
    for each in reversed(before):  # the last one before it, if both stand in one block
        assignment = module.enclosing(each, ast.stmt)
        if (
            assignment
            and statement
            and getattr(assignment, "col_offset", 0) == getattr(statement, "col_offset", 0)
        ):
            return [each]
    return values or _constant(module, name)


def _constant(module: Module, name: str) -> list[ast.expr]:
    """Return the value of a constant of the module, or of the module that it is imported from."""
    if own := _constants(module).get(name):
        return own
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}:
            home = module_named(str(node.module), or_none=True)
            return _constants(home).get(name, []) if home else []
    return []


@cache
def _constants(module: Module) -> dict[str, list[ast.expr]]:
    """Return what is assigned to each name at the level of the module."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    for node in module.tree.body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            found[ast.unparse(node.target)].append(node.value)
        elif isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])].append(node.value)
    return found
