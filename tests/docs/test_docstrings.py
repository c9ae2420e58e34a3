"""The examples of public classes run as shown.

Classes name the public place as their module, so that a search of the file that defines them finds no
examples. Those of functions are found there, by `pytest --doctest-modules`.
"""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator

import pytest

import treadle

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_classes() -> Iterator[tuple[str, type]]:
    for name in treadle.__all__:
        value = getattr(treadle, name)
        if inspect.isclass(value) and value.__module__ == "treadle":
            yield name, value


CLASSES = dict(public_classes())


def examples(name: str, kind: type) -> list[doctest.DocTest]:
    return doctest.DocTestFinder().find(kind, name, module=False, globs={})


@pytest.mark.others_keep(
    *("GraphDef", "Flat", "Dispatcher", "VariableCell", "ObjectNode", "VariableState", "array"),
    reason="a class keeps the names of its example, and lifted classes remember classes",
)
@pytest.mark.parametrize("name", CLASSES)
def test_the_examples_of_a_class_run_as_shown(name: str) -> None:
    for test in examples(name, CLASSES[name]):
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=OPTIONS)
        runner.run(test, out=report.append)
        assert runner.failures == 0, "".join(report)


def test_classes_and_their_methods_have_examples() -> None:
    found = {test.name for name, kind in CLASSES.items() for test in examples(name, kind)}
    assert {"Linear", "State", "State.flat_state", "Optimizer", "Rngs"} <= found
