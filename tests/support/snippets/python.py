"""Python code in pages: it compiles, its imports exist, and our functions accept its arguments."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import cdc_tasks
from cdc_tasks.routing.router import BinlogRouter
from tests.support.snippets.errors import WrongSnippetError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check", "names_bound_by"]

_OURS: Final = ("cdc_tasks", "listener")
# Readers' packages, as the pages name them.
_OF_READERS: Final = {
    "catalogue",
    "myapp",
    "orders",
    "routes",
    "search",
    "shop",
    "shop_routes",
    "shop_tasks",
    "stock",
    "tasks",
}
# Names outside of an extract, which a reader has.
_AROUND: Final[dict[str, Any]] = {
    **dict.fromkeys(
        ("app", "change", "engine", "order", "request", "schema", "self", "session", "text"),
    ),
    "router": BinlogRouter(),
}


def check(text: str, before: set[str]) -> None:
    """Raise WrongSnippetError for code that would not run; `before` are the names of the page's earlier blocks."""
    try:
        tree = ast.parse(text)
        compile(text, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        raise WrongSnippetError(str(error)) from None
    names = _Names()
    names.visit(tree)
    known = {*names.bound, *before, *_AROUND, *dir(builtins), *cdc_tasks.__all__, "cdc_tasks", "__file__"}
    if missing := names.used - known:
        raise WrongSnippetError(f"nothing defines {', '.join(sorted(missing))}")
    objects = _known_objects(tree)
    for call in (each for each in ast.walk(tree) if isinstance(each, ast.Call)):
        _check_call(call, objects)
    for attribute in (each for each in ast.walk(tree) if isinstance(each, ast.Attribute)):
        _resolve(attribute, objects)


def names_bound_by(text: str) -> set[str]:
    """Return the names that a block defines or imports, including those in functions."""
    names = _Names()
    names.visit(ast.parse(text))
    return names.bound


class _Names(ast.NodeVisitor):
    """The names of a text, regardless of scopes: a page's extract is short."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self.used: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        (self.used if isinstance(node.ctx, ast.Load) else self.bound).add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self.bound.add(node.arg)
        self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> None:
        self.bound.add(node.asname or node.name.partition(".")[0])

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.bound.add(node.name)
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef  # noqa: N815 - the names are ast's

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.bound.add(node.name or "")
        self.generic_visit(node)


def _known_objects(tree: ast.Module) -> dict[str, Any]:
    """Return our objects that the names of a text refer to. Raises WrongSnippetError for a wrong import."""
    objects = {name: each for name, each in _AROUND.items() if each is not None}
    objects |= {"cdc_tasks": cdc_tasks, **{name: getattr(cdc_tasks, name) for name in cdc_tasks.__all__}}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            objects |= {alias: each for alias, each in _imported_from(node) if each is not None}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                _module(alias.name)
    return objects


def _imported_from(node: ast.ImportFrom) -> Iterator[tuple[str, Any]]:
    module = _module(node.module or "") if node.level == 0 else None
    for alias in node.names:
        if module is None or alias.name == "*":
            continue
        found = getattr(module, alias.name, None) or _submodule(module.__name__, alias.name)
        yield alias.asname or alias.name, found if module.__name__.partition(".")[0] in _OURS else None


def _module(name: str) -> Any:
    """Return the module, or None for one of the reader's."""
    root = name.partition(".")[0]
    if root in _OF_READERS:
        return None
    try:
        return import_module(name)
    except ImportError as error:
        raise WrongSnippetError(f"import {name}: {error}") from None


def _submodule(module: str, name: str) -> Any:
    try:
        return import_module(f"{module}.{name}")
    except ImportError:
        raise WrongSnippetError(f"{module} has no {name}") from None


def _resolve(node: ast.expr, objects: dict[str, Any]) -> Any:
    """Return the object of an expression, or None. Raises WrongSnippetError if ours has no such attribute."""
    if isinstance(node, ast.Name):
        return objects.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = _resolve(node.value, objects)
    if owner is None:
        return None
    if inspect.ismodule(owner) and not hasattr(owner, node.attr):
        return _submodule(owner.__name__, node.attr)
    if inspect.ismodule(owner) or inspect.isclass(owner) or isinstance(owner, BinlogRouter):
        if not hasattr(owner, node.attr):
            raise WrongSnippetError(f"{ast.unparse(node)} does not exist")
        return getattr(owner, node.attr)
    return None


def _check_call(call: ast.Call, objects: dict[str, Any]) -> None:
    function = _resolve(call.func, objects)
    is_open = any(isinstance(each, ast.Starred) for each in call.args) or None in {
        each.arg for each in call.keywords
    }
    if (
        function is None
        or is_open
        or not re.match(r"cdc_tasks|listener", getattr(function, "__module__", ""))
    ):
        return
    try:
        inspect.signature(function).bind(*call.args, **{str(each.arg): each.value for each in call.keywords})
    except TypeError as error:
        raise WrongSnippetError(f"{ast.unparse(call)}: {error}") from None
