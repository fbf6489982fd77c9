"""docs/reference/python.md: the public names, from their definitions and docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from reference.sources import Module, module_named, public_names
from reference.text import code, escaped, first_sentence, page, table, unwrapped

__all__ = ["python_page", "unnamed_parameters"]

_HEAD = """
What is on this page is stable. Any version may add a name or a parameter. If one is changed or removed, the
[changelog](../changelog.md) says so. What is not listed here may change in any version.

Names of tasks: [tasks](../tasks.md). Commands: [commands](commands.md).
"""

# Module: what the page says of it first.
_MODULES: Final = {
    "cdc_tasks": "How to use them: [routes](../routes.md), [tasks](../tasks.md), [enqueue](../enqueue.md), [who did "
    "it](../context.md), [your own app](../own-celery-app.md).",
    "cdc_tasks.web.asgi": "How to use it: [who did it](../context.md#for-every-request).",
    "cdc_tasks.web.flask": "How to use it: [who did it](../context.md#for-every-request).",
    "cdc_tasks.notify": "How to use them: [tasks](../tasks.md#your-own).",
    "cdc_tasks.testing": "How to use them: [test your routes](../testing.md), which also has the pytest fixtures `cdc`, `cdc_app`, "
    "`cdc_router` and `cdc_database_url`.",
    "cdc_tasks.django": "How to use them: [in a Django project](../django.md). It also lists the ids of the "
    "[system checks](../django.md#before-you-migrate).",
    "cdc_tasks.django.testing": "How to use them: [in a Django project](../django.md).",
    "cdc_tasks.celery": "Start workers with `celery -A cdc_tasks worker`. How to use it: [tasks](../tasks.md#your-own).",
    "listener.router": "The names for route files. `listener` has the same names. They are those of `cdc_tasks`, and `Route`.",
}

# What an assignment is, where no docstring says it.
_WORDS: Final = {
    "INSERT": "The event of an inserted row.",
    "UPDATE": "The event of an updated row.",
    "DELETE": "The event of a deleted row.",
    "TRUNCATE": "The event of a table that was emptied.",
    "READ": "The event of a row that a [backfill](../backfill.md) read.",
    "app": "The Celery app: register tasks with `@app.task(name=…)`.",
    "db": "The database of `DATABASE_URL` for tasks: `db.session()`, `db.engine()`.",
    "master_cache": "The master cache for readers: `master_cache.get(name)`. See [the cache](../tasks.md#the-master-cache).",
    "notify": "The package of messages, [below](#cdc_tasksnotify).",
}

# What of a class is for the listener and the workers themselves.
_INTERNAL: Final = {
    "BinlogRouter": {"copy", "for_reads", "for_replay", "prefixes", "routes_for", "tasks_for"},
    "Captured": {"__init__"},
    "Change": {"commit", "kind", "row_json", "stamp", "to_json"},
    "Fired": {"of"},
    "Route": {"is_grouped", "options", "parameters", "replay", "sent_as"},
    "RowChange": {"commit", "kind", "row_json", "stamp", "to_json"},
}

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_MANY = 3  # parameters: more have a table


class _Defined(NamedTuple):
    """Where a name is defined."""

    module: Module
    node: ast.AST


def python_page() -> str:
    """Return the page."""
    return page("Python: the public names", _HEAD, *_parts())


def _parts() -> Iterator[str]:
    shown: dict[int, str] = {}
    for module, words in _MODULES.items():
        yield f"## `{module}`"
        yield words
        names = sorted(public_names(module), key=str.lower)
        yield table(("name", "what it is"), [(f"`{name}`", _summary(module, name)) for name in names])
        for name in names:
            defined = _definition(module_named(module), name)
            if isinstance(defined.node, _Function | ast.ClassDef):
                full = f"{module}.{name}"
                if shown.setdefault(id(defined.node), full) != full:
                    continue  # it stands above, where it is first public
                yield f"### `{full}`"
                yield from _described(defined)


def _summary(module: str, name: str) -> str:
    if name in _WORDS:
        return _WORDS[name]
    node = _definition(module_named(module), name).node
    text = ast.get_docstring(node) if isinstance(node, _Function | ast.ClassDef | ast.Module) else ""
    return escaped(first_sentence(text or ""))


def _definition(module: Module, name: str) -> _Defined:
    """Return where a public name is defined, behind the imports."""
    for node in module.tree.body:
        if isinstance(node, _Function | ast.ClassDef) and node.name == name:
            return _Defined(module, node)
    for each in ast.walk(module.tree):
        if isinstance(each, ast.ImportFrom) and name in {alias.name for alias in each.names}:
            inner = module_named(f"{each.module}.{name}", or_none=True)
            if inner is not None:
                return _Defined(inner, inner.tree)
            home = module_named(str(each.module), or_none=True)
            if home is not None:
                return _definition(home, name)
    return _Defined(module, module.tree)


# --- Functions and classes ------------------------------------------------------------------------------


def _described(defined: _Defined) -> Iterator[str]:
    node = defined.node
    if isinstance(node, _Function):
        yield from _function(node, node.name)
    elif isinstance(node, ast.ClassDef):
        yield from _class(defined.module, node)


def _function(node: _Function, name: str) -> Iterator[str]:
    if "contextmanager" in map(ast.unparse, node.decorator_list):
        name = f"with {name}"
    yield f"<!-- not run: a signature -->\n```python\n{_signature(node, name)}\n```"
    text = ast.get_docstring(node) or ""
    yield _prose(text)
    parameters = _parameters(node)
    if len(parameters) > _MANY:
        yield table(
            ("parameter", "type", "default", "meaning"),
            [
                (f"`{each.name}`", code(each.type), code(each.default), escaped(_about(text, each.name)))
                for each in parameters
            ],
        )


class _Parameter(NamedTuple):
    name: str
    type: str
    default: str
    spelled: str  # as the signature has it


def _parameters(node: _Function) -> list[_Parameter]:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    found = [_parameter(each, default) for each, default in zip(plain, defaults, strict=True)]
    if given.vararg:
        found.append(_parameter(given.vararg, None, "*"))
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found += [_parameter(each, default) for each, default in keywords]
    if given.kwarg:
        found.append(_parameter(given.kwarg, None, "**"))
    return [each for each in found if each.name not in {"self", "cls"}]


def _parameter(node: ast.arg, default: ast.expr | None, stars: str = "") -> _Parameter:
    annotation = ast.unparse(node.annotation) if node.annotation else ""
    value = "" if default is None else _value(default)
    spelled = f"{stars}{node.arg}{f': {annotation}' if annotation else ''}{f' = {value}' if value else ''}"
    return _Parameter(f"{stars}{node.arg}", annotation, value, spelled)


def _value(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", '"')


def _signature(node: _Function, name: str) -> str:
    """Return the signature, with a line for each parameter if there are several."""
    parts = _spelled(node)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    short = f"{name}({', '.join(parts)}){result}"
    if len(short) <= 100:
        return short
    return "\n".join([f"{name}(", *(f"    {each}," for each in parts), f"){result}"])


def _spelled(node: _Function) -> list[str]:
    given = node.args
    names = {each.arg for each in given.kwonlyargs}
    parts, is_open = list[str](), bool(given.vararg)
    for each in _parameters(node):
        if each.name in names and not is_open:
            parts.append("*")
            is_open = True
        parts.append(each.spelled)
    if given.posonlyargs:
        parts.insert(len([each for each in given.posonlyargs if each.arg not in {"self", "cls"}]), "/")
    return parts


def _class(module: Module, node: ast.ClassDef) -> Iterator[str]:
    bases = [ast.unparse(each) for each in node.bases]
    of = f"({', '.join(bases)})" if bases else ""
    yield f"<!-- not run: a signature -->\n```python\nclass {node.name}{of}\n```"
    yield _prose(ast.get_docstring(node) or "")
    yield table(("attribute", "type", "default", "meaning"), _attributes(module, node))
    for each in _methods(node):
        yield from _method(node, each)


def _methods(node: ast.ClassDef) -> list[_Function]:
    internal = _INTERNAL.get(node.name, set())
    functions = [each for each in node.body if isinstance(each, _Function)]
    return [each for each in functions if _is_public(each) and each.name not in internal]


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign | ast.Assign | _Function]:
    found: list[ast.AnnAssign | ast.Assign | _Function] = []
    internal = _INTERNAL.get(node.name, set())
    for each in node.body:
        if isinstance(each, ast.AnnAssign | ast.Assign):
            target = each.target if isinstance(each, ast.AnnAssign) else each.targets[0]
            if not ast.unparse(target).startswith("_") and ast.unparse(target) not in internal:
                found.append(each)
        elif isinstance(each, _Function) and _is_property(each) and each.name not in internal:
            found.append(each)
    return found


def _is_property(node: _Function) -> bool:
    return not node.name.startswith("_") and any(
        ast.unparse(each) in {"property", "cached_property"} for each in node.decorator_list
    )


# A class whose attributes have the words of another's of the same names.
_SAME_WORDS: Final = {"Change": "RowChange"}


def _words_of_twin(module: Module, owner: str) -> dict[str, str]:
    twins = [each for each in module.classes if each.name == _SAME_WORDS.get(owner)]
    rows = [_field(module, each) for twin in twins for each in _fields(twin)]
    return {row[0]: row[-1] for row in rows}


def _attributes(module: Module, node: ast.ClassDef) -> Iterator[tuple[str, ...]]:
    twin = _words_of_twin(module, node.name)
    for each in _fields(node):
        *cells, words = _field(module, each)
        yield *cells, words or twin.get(cells[0], "")


def _field(module: Module, node: ast.AnnAssign | ast.Assign | _Function) -> tuple[str, ...]:
    if isinstance(node, _Function):
        words = ast.get_docstring(node) or module.comment(node.body[0]) or module.comment(node)
        return f"`{node.name}`", code(ast.unparse(node.returns) if node.returns else ""), "", _words(words)
    if isinstance(node, ast.Assign):
        return f"`{ast.unparse(node.targets[0])}`", "", code(_value(node.value)), _words(module.comment(node))
    default = _value(node.value) if node.value and not isinstance(node.value, ast.Call) else ""
    return (
        f"`{ast.unparse(node.target)}`",
        code(ast.unparse(node.annotation)),
        code(default),
        _words(module.comment(node)),
    )


def _words(text: str) -> str:
    plain = " ".join(text.split())
    return escaped(plain[:1].upper() + plain[1:] if plain[:1].islower() and "`" not in plain[:2] else plain)


def _is_public(node: _Function) -> bool:
    if _is_property(node):
        return False
    takes_words = node.name == "__init__" and bool(ast.get_docstring(node) or _parameters(node))
    return takes_words or not node.name.startswith("_")


def _method(owner: ast.ClassDef, node: _Function) -> Iterator[str]:
    if node.name == "__init__":
        yield f"#### `{owner.name}(…)`"
        yield from _function(node, owner.name)
        return
    yield f"#### `{owner.name}.{node.name}`"
    is_static = {"classmethod", "staticmethod"} & {ast.unparse(each) for each in node.decorator_list}
    yield from _function(node, f"{owner.name}.{node.name}" if is_static else node.name)


# --- Words ----------------------------------------------------------------------------------------------


def _prose(text: str) -> str:
    return unwrapped(text, each=escaped)


def _about(docstring: str, name: str) -> str:
    """Return the sentences of a docstring that name the parameter."""
    plain = name.strip("*")
    naming = re.compile(rf"`\*{{0,2}}{plain}(?:\W[^`]*)?`")
    sentences = re.split(r"(?<=[.:;])\s+(?=[A-Z`])|\n\n|\n(?=- )", docstring)
    found = [" ".join(each.split()) for each in sentences if naming.search(each)]
    return found[0].removeprefix("- ") if found else ""


def unnamed_parameters() -> dict[str, list[str]]:
    """Return the parameters, of public functions with several, that no sentence of the docstring names."""
    found: dict[str, list[str]] = {}
    for module in _MODULES:
        for name in public_names(module):
            node = _definition(module_named(module), name).node
            for each in _functions(node):
                text = ast.get_docstring(each) or ""
                if len(parameters := _parameters(each)) > _MANY:
                    missing = [one.name for one in parameters if not _about(text, one.name)]
                    found |= {f"{module}.{name}.{each.name}": missing} if missing else {}
    return found


def _functions(node: ast.AST) -> list[_Function]:
    if isinstance(node, _Function):
        return [node]
    return _methods(node) if isinstance(node, ast.ClassDef) else []
