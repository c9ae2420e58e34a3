"""The library has one name: what people install is what they import, and what the documents tell them to."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import treadle
from treadle import _core

ROOT = Path(__file__).resolve().parents[2]
NAME = treadle.__name__
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
# What documents may install beside us.
OTHERS = {"jax", "optax", "atheris"}

INSTALL = re.compile(r"pip install\s+([^\n`#]+)")
OPTION = re.compile(r"-C \S+|--?[\w-]+")
REQUIREMENT = re.compile(r"([A-Za-z][\w-]*)(?:\[[\w,]+\])?(?:[<>=!~]=?\S*)?")
IMPORT = re.compile(r"^\s*(?:import (\S+) as nnx|from (\S+) import nnx)", re.MULTILINE)


def installed(text: str) -> set[str]:
    """Names of the distributions that the commands in `text` install; a path is none."""
    words = (OPTION.sub("", command).split() for command in INSTALL.findall(text))
    found = (REQUIREMENT.fullmatch(word.strip("\"'")) for line in words for word in line)
    return {match[1] for match in found if match}


def test_the_distribution_has_the_name_of_the_package() -> None:
    # An editable install names no packages, a wheel names ours alone.
    providers = metadata.packages_distributions().get(NAME, [NAME])
    assert set(providers) == {NAME}
    assert metadata.metadata(NAME)["Name"] == NAME
    assert metadata.version(NAME) == treadle.__version__


def test_the_extension_belongs_to_the_package() -> None:
    assert _core.__name__ == f"{NAME}._core"
    assert _core.__version__ == treadle.__version__


def test_extras_that_ask_for_the_library_ask_for_it_by_its_name() -> None:
    required = metadata.requires(NAME) or []
    with_extras = {line.split("[")[0] for line in required if "[" in line.split(";")[0]}
    assert with_extras <= {NAME}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documents_install_and_import_that_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert installed(text) <= {NAME, *OTHERS}
    imported = {first or second for first, second in IMPORT.findall(text)}
    assert imported <= {NAME, "flax"}


def test_the_install_page_installs_the_library() -> None:
    assert NAME in installed((ROOT / "docs" / "install.md").read_text(encoding="utf-8"))


def test_another_name_in_a_document_is_found() -> None:
    assert installed('pip install "loom[train]"  # it\npip install -q shed==1.0') == {
        "loom",
        "shed",
    }
    assert IMPORT.findall("import loom as nnx") == [("loom", "")]
