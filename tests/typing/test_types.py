"""What users' editors and type checkers see: strict pyright and mypy over `cases`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.typing.checkers import CHECKERS, Said, differences, expected, plain

HERE = Path(__file__).resolve().parent
CASES, WRONG = HERE / "cases", HERE / "wrong"


@pytest.mark.parametrize("checker", CHECKERS)
def test_types_are_what_the_comments_say(checker: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: it comes with the extra `lint`")
    said = CHECKERS[checker]([CASES, WRONG], tmp_path)
    wrong = {place: entries for place, entries in said.items() if place[0] == "expectations.py"}
    right = {place: entries for place, entries in said.items() if place not in wrong}

    assert not differences(right, expected([CASES], checker))
    # And what is expected in vain is noticed, by this very run.
    lines = [int(line.split(":")[1]) for line in differences(wrong, expected([WRONG], checker))]
    assert lines == [7, 8, 9, 10, 11, 12]


def test_differences_of_each_kind_are_noticed() -> None:
    place = ("a.py", 1)
    said = {place: [Said("type", "Linear"), Said("error", "arg-type")]}
    assert differences(said, said) == []
    for wanted in ([], said[place][:1], said[place][1:], [*said[place], Said("error", "misc")]):
        assert len(differences(said, {place: wanted})) == 1
    assert len(differences(said, {})) == 1
    assert len(differences(said, {("a.py", 2): said[place]})) == 2
    assert differences({place: []}, {}) == []


@pytest.mark.parametrize(
    ("written", "spelling"),
    [
        ("treadle.nn._linear.Linear", "Linear"),
        ("def (x: jax._src.Array, n: int =) -> a.B", "(x: Array, n: int =) -> B"),
        ('(x: Array, n: int = 1, m: str = "") -> B', "(x: Array, n: int =, m: str =) -> B"),
        ("a.J[[x: dict[str, b.C], *, n: int =], None]", "J[(x: dict[str, C], *, n: int =), None]"),
        ("tuple[Any, ...]", "tuple[Any, ...]"),
    ],
)
def test_both_checkers_types_come_in_one_spelling(written: str, spelling: str) -> None:
    assert plain(written) == spelling


def test_what_is_for_checkers_only_is_not_imported() -> None:
    code = (
        "import sys, jax; before = {*sys.modules}\n"
        "import treadle as nnx; nnx.jit, nnx.grad, nnx.Scan, nnx.Linear\n"
        "print(*({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    assert "treadle.transforms._decorator" in new
    assert not new & {
        "typing_extensions",
        "treadle._objects.operator_types",
        "treadle.transforms._grad_types",
    }
