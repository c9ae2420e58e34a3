"""The Python code in the README and the documentation runs as shown.

Only blocks fenced with ```` ```python ```` are run. Those of one page share their names, from top to bottom,
as a reader would paste them. A block written as an interactive session is compared with the output it shows.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def code_blocks(text: str) -> list[tuple[int, str]]:
    """The runnable blocks of a page as (number of the line before it, code)."""
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in BLOCK.finditer(text)]


def run_block(code: str, line: int, page: Path, names: dict[str, object]) -> None:
    if ">>>" not in code:
        # Blank lines in front make tracebacks show the page's own line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert runner.failures == 0, "".join(report)


@pytest.mark.others_keep(
    *("GraphDef", "Flat", "Dispatcher", "VariableCell", "ObjectNode", "VariableState", "array"),
    reason="a class keeps the names of its page, and flax and lifted classes remember classes",
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs_as_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in code_blocks(page.read_text(encoding="utf-8")):
        run_block(code, line, page, names)


def test_the_readme_has_code_to_run() -> None:
    assert code_blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_a_session_that_shows_wrong_output_fails() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        run_block(">>> 1 + 1\n3\n", 0, ROOT / "README.md", {})
