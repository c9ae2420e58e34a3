"""Print what pyproject.toml requires, one requirement a line, for `pip install -r /dev/stdin`.

    python tools/project.py build runtime test

Each argument is `build` (to build without isolation), `runtime`, or the name of an extra.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def version() -> str:
    """The version, from the one place where it is written."""
    text = (ROOT / "python/treadle/_version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None, "python/treadle/_version.py has no __version__"
    return found[1]


def test_sources() -> list[str]:
    """What tests of an installed wheel need from the source tree."""
    return _pyproject()["tool"]["cibuildwheel"]["test-sources"]


def requirements(section: str) -> list[str]:
    """Requirements of one section, with `treadle[a,b]` replaced by those of its extras."""
    pyproject = _pyproject()
    project = pyproject["project"]
    sections = {
        "build": [*pyproject["build-system"]["requires"], "cmake>=3.21", "ninja"],
        "runtime": project["dependencies"],
        **project["optional-dependencies"],
    }
    found = []
    for requirement in sections[section]:
        extras = re.fullmatch(r"treadle\[(.+)\]", requirement)
        if extras is None:
            found.append(requirement)
        else:
            for extra in extras[1].split(","):
                found += requirements(extra.strip())
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for line in dict.fromkeys(line for section in sys.argv[1:] for line in requirements(section)):
        print(line)
