"""Importing treadle: what it brings along, and what it must not."""

from __future__ import annotations

import doctest
import subprocess
import sys
import textwrap

import pytest

import treadle as nnx


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=300)


def test_importing_treadle_brings_neither_optax_nor_flax_nor_layers() -> None:
    run(
        """
        import sys, treadle
        heavy = {"optax", "flax", "treadle.nn", "treadle.training", "treadle.transforms"} & set(sys.modules)
        assert not heavy, heavy
        """
    )


def test_layers_come_when_asked_for() -> None:
    run("import treadle; treadle.Linear; treadle.nn.Linear is treadle.Linear or exit(1)")


def test_a_name_brings_its_own_module_and_what_that_needs() -> None:
    run(
        """
        import sys, treadle
        assert "treadle._modules.module" not in sys.modules
        treadle.Linear, treadle.jit, treadle.Optimizer
        names = "transforms._scan transforms._lifted transforms._checkify nn._attention training.metrics"
        others = {f"treadle.{name}" for name in names.split()} & set(sys.modules)
        assert not others, others
        """
    )


@pytest.mark.parametrize("package", ["", ".transforms", ".nn", ".training"])
def test_every_listed_name_comes_alone(package: str) -> None:
    """Whatever is asked for first in a process."""
    run(
        f"""
        import importlib, os, sys
        package = importlib.import_module("treadle{package}")
        names = list(package.__all__)
        for start in range(0, len(names), 7):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    getattr(package, names[start])
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, names[start]
        """
    )


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'treadle' has no attribute 'nonsense'"):
        _ = nnx.nonsense


def test_every_name_that_dir_lists_exists() -> None:
    missing = [name for name in dir(nnx) if not hasattr(nnx, name)]
    assert not missing


@pytest.mark.parametrize("extension_type", [nnx.GraphDef, nnx.VariableState])
def test_examples_of_extension_types_run(extension_type: type) -> None:
    examples = doctest.DocTestFinder(recurse=False).find(extension_type, module=False)
    runner = doctest.DocTestRunner()
    assert [runner.run(example).failed for example in examples] == [0]


def test_every_public_name_has_a_docstring() -> None:
    names = [name for name in dir(nnx) if not name.startswith("_")]
    assert len(names) > 50
    undocumented = [
        name
        for name in names
        if (isinstance(getattr(nnx, name), type) or callable(getattr(nnx, name)))
        and not getattr(getattr(nnx, name), "__doc__", None)
    ]
    assert not undocumented
