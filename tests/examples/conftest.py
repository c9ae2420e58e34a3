from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [n for n, m in sys.modules.items() if _is_example(m)]:
        del sys.modules[name]


def _is_example(module):
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent == EXAMPLES
