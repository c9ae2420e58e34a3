"""Tables of bounded size."""

from __future__ import annotations

import pytest

from treadle.transforms._bounded import Bounded


def fail():
    raise AssertionError("made although it is known")


def test_what_was_not_used_for_longest_is_forgotten():
    table = Bounded(2)
    for key in "ab":
        table.get(key, lambda key=key: key * 2)
    assert table.get("a", fail) == "aa"
    table.get("c", lambda: "cc")
    assert [*table] == ["a", "c"]
    assert len(table) == 2
    assert table.get("b", lambda: "again") == "again"


def test_a_value_may_be_none_and_what_raises_is_not_entered():
    table = Bounded(2)
    assert table.get("a", lambda: None) is None
    assert table.get("a", fail) is None
    with pytest.raises(AssertionError):
        table.get("b", fail)
    assert [*table] == ["a"]


def test_a_value_that_is_made_while_it_is_made_stays():
    table = Bounded(2)

    def outer():
        table.get("a", lambda: "inner")
        return "outer"

    assert table.get("a", outer) == "inner"
    assert table.get("a", fail) == "inner"


def test_comparing_keys_may_clear_the_table():
    table = Bounded(2)

    class Key:
        def __init__(self, clears):
            self.clears = clears

        def __hash__(self):
            return 1

        def __eq__(self, other):
            if self.clears or other.clears:
                table.clear()
            return True

    table.get(Key(False), lambda: "first")
    assert table.get(Key(True), lambda: "second") in ("first", "second")
    assert len(table) <= 1
