"""The package shows its architecture: imports run down, what is public says so, the rest is private."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import treadle

ROOT = Path(treadle.__file__).parent
PUBLIC_MODULES = {
    "treadle.errors",
    "treadle.integrations",
    "treadle.integrations.flax",
    "treadle.nn",
    "treadle.nn.activations",
    "treadle.nn.initializers",
    "treadle.pickles",
    "treadle.spmd",
    "treadle.training",
    "treadle.training.metrics",
    "treadle.transforms",
}
# From the ground up. A file imports from its own floor and from those before it.
FLOORS = (
    {"_version", "_requirements", "_public", "_core", "errors", "pickles"},
    {"_objects", "_bootstrap"},
    {"_graph"},
    {"_modules"},
    {"_sharding", "spmd", "integrations"},
    {"transforms"},
    {"nn", "training"},
)


def sources() -> dict[str, Path]:
    """The package's modules by name, and the files that they are in."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def imported(source: str, modules: set[str]) -> Iterator[str]:
    """Modules of the package that `source` imports when it is imported itself."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module
        pending.extend(ast.iter_child_nodes(node))


def import_graph() -> dict[str, set[str]]:
    modules = {*SOURCES, "treadle._core"}
    return {
        name: {*imported(path.read_text(encoding="utf-8"), modules)} - {name}
        for name, path in SOURCES.items()
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, in order; none if imports run down only."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(import_graph()) == []


def test_a_circle_is_found() -> None:
    modules = {"p", "p.a", "p.b"}
    a = "if TYPE_CHECKING:\n    from p import c\nelse:\n    from p import b"
    b = "class C:\n    from p.a import x\ndef f():\n    import p"
    graph = {"p.a": {*imported(a, modules)}, "p.b": {*imported(b, modules)}}
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.a"}}
    assert set(circle(graph)) == {"p.a", "p.b"}


def test_imports_run_down_only() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    up = [
        f"{name} imports {other}"
        for name, others in import_graph().items()
        for other in others
        if name not in ("treadle", "treadle.__main__") and other != "treadle"
        if floor[other.split(".")[1]] > floor[name.split(".")[1]]
    ]
    assert up == []


def test_what_is_not_listed_as_public_is_private() -> None:
    names = {info.name for info in pkgutil.walk_packages(treadle.__path__, "treadle.")}
    public = {name for name in names if not any(part[0] == "_" for part in name.split("."))}
    public = {name for name in public if not name.startswith("treadle.transforms.")}
    assert public == PUBLIC_MODULES


def test_the_table_of_contents_is_true() -> None:
    lazy = {
        name
        for package in treadle._LAZY
        for name in (package.removeprefix("treadle."), *importlib.import_module(package).__all__)
    }
    lazy.update(name for names in treadle._HOMES.values() for name in names)
    eager = {name for name in vars(treadle) if not name.startswith("_")} - {"integrations"}
    assert len(treadle.__all__) == len(set(treadle.__all__))
    assert lazy <= set(treadle.__all__) <= lazy | eager | {"__version__"}
    assert {name for name in dir(treadle) if not name.startswith("__")} | {"__version__"} == set(
        treadle.__all__
    )
    for name in treadle.__all__:
        getattr(treadle, name)


@pytest.mark.parametrize("name", treadle.__all__)
def test_what_is_public_says_where_it_is_public(name: str) -> None:
    value = getattr(treadle, name)
    home = getattr(value, "__module__", None)
    if isinstance(home, str) and home.partition(".")[0] == "treadle":
        assert home == "treadle"
        # flax has a base class for pytrees, which all nodes are here.
        assert value.__qualname__ == {"Pytree": "Object"}.get(name, name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'treadle' has no attribute 'looom'"):
        treadle.looom


LONG = 60


def long_functions(source: str) -> Iterator[tuple[str, bool]]:
    """Names of functions over the limit, docstrings aside, and whether the line or two before them say why."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first, size = node.body[0], node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            size -= first.end_lineno - first.lineno + 1
        if size > LONG:
            top = min([node, *node.decorator_list], key=lambda part: part.lineno).lineno - 1
            before = [line.strip() for line in lines[max(top - 2, 0) : top]]
            yield node.name, any(line.startswith(f"# Over {LONG} lines: ") for line in before)


@pytest.mark.parametrize("module", SOURCES)
def test_long_functions_say_why(module):
    found = dict(long_functions(SOURCES[module].read_text(encoding="utf-8")))
    assert all(found.values()), found


def test_long_functions_are_found():
    body = "".join(f"    x = {i}\n" for i in range(LONG + 1))
    assert list(long_functions("def f():\n" + body)) == [("f", False)]
    assert list(long_functions(f"# Over {LONG} lines: a table.\ndef f():\n" + body)) == [
        ("f", True)
    ]
    assert not list(long_functions('def f():\n    """' + "\n" * LONG + '"""\n    return 1\n'))
