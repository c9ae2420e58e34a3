"""The rooms of the engine: folders of C++ files, each of which knows only those before it."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
ROOMS = ["", "objects", "statics", "structure", "graph", "effects", "dispatch"]
INCLUDE = re.compile(r'^#include "(?:(\w+)/)?\w+\.h"$', re.MULTILINE)

pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="a wheel has no sources")


def files(room: str) -> list[Path]:
    return sorted(path for path in (CSRC / room).iterdir() if path.suffix in (".h", ".cpp"))


def test_every_folder_is_a_room() -> None:
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == set(ROOMS) - {""}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_those_before_it(room: str) -> None:
    known = set(ROOMS[: ROOMS.index(room) + 1])
    strangers = [
        (path.name, other)
        for path in files(room)
        if path.name != "module.cpp"  # puts all of them together
        for other in INCLUDE.findall(path.read_text())
        if other not in known
    ]
    assert not strangers
