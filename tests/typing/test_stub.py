"""`_core.pyi` describes the extension as it is."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import treadle
from treadle import _core

STUB = ast.parse((Path(treadle.__file__).parent / "_core.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
# What only debug builds have.
DEBUG = {"_live_counts", "_fail_allocation"}
# What the stub needs to say the rest.
TYPES = {"N", "Path"}
# What every class has.
COMMON = {*dir(object), "__module__", "__doc__", "__dict__", "__weakref__", "__slots__"}
# How an object of C++ is called, where it keeps what, and what walks look for.
LAYOUT = {"_lifted_", "__vectorcalloffset__", "__dictoffset__", "__weaklistoffset__"}


def names(body: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def members(cls: type[Any]) -> set[str]:
    return set(vars(cls)) - COMMON - LAYOUT


def test_the_module_has_what_the_stub_has() -> None:
    own = {name for name in vars(_core) if not hasattr(type(_core), name) or name == "__file__"}
    own -= {"__name__", "__doc__", "__package__", "__loader__", "__spec__"}
    assert own - DEBUG == names(STUB.body) - TYPES - DEBUG


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_what_the_stub_has(name: str) -> None:
    in_stub = names(CLASSES[name].body) - COMMON
    # Python adds some when the package is imported; attributes found by name are nowhere listed.
    assert in_stub - {"__getattr__"} == members(getattr(_core, name)) - {"__class_getitem__"}


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_stub_calls_a_method_is_one(name: str) -> None:
    cls = getattr(_core, name)
    for node in CLASSES[name].body:
        if isinstance(node, ast.FunctionDef) and node.name != "__getattr__":
            assert callable(getattr(cls, node.name)), node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found = inspect.getattr_static(cls, node.target.id)
            assert inspect.isdatadescriptor(found), node.target.id


def test_every_class_of_the_module_is_a_class_in_the_stub() -> None:
    assert {name for name, value in vars(_core).items() if isinstance(value, type)} == set(CLASSES)


def test_functions_take_what_the_stub_says_as_far_as_they_tell() -> None:
    for node in STUB.body:
        function = getattr(_core, node.name, None) if isinstance(node, ast.FunctionDef) else None
        if function is None:
            continue
        assert callable(function)
        try:
            told = inspect.signature(function)
        except ValueError:  # builtins without a signature
            continue
        positional = len(node.args.posonlyargs) + len(node.args.args)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        fixed = [p for p in told.parameters.values() if p.kind in kinds]
        if len(fixed) == len(told.parameters):
            assert len(fixed) == positional, node.name
