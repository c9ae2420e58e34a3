"""What the fuzzer found once stays fixed, and what it can reach stays reachable."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import target

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*"))


@pytest.mark.others_keep(
    "Outputs", reason="what the tests' own dispatchers make joins a pool of 16"
)
@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_inputs_kept_from_fuzzing(file: Path) -> None:
    target.check(file.read_bytes())


def test_there_is_a_corpus() -> None:
    assert CORPUS
