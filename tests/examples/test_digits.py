from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

for needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(needed, reason="the examples need treadle[examples]")


@pytest.fixture
def digits():
    import digits

    return digits


def test_the_split_keeps_every_scan_once_and_every_digit_on_both_sides(digits):
    train, test = digits.load()
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.shape[1:] == (8, 8, 1)
    assert train.images.max() == 1.0
    assert set(train.labels) == set(test.labels) == set(range(10))
    batches = list(train.batches(np.random.default_rng(0)))
    assert all(batch.images.shape == (digits.BATCH, 8, 8, 1) for batch in batches)


def test_one_epoch_learns_and_reports_what_it_read(digits):
    train, test = digits.load()
    trained = digits.train(train, test, epochs=1, seed=0)
    assert trained.accuracy > 0.5
    assert trained.accuracy == pytest.approx((trained.predicted == test.labels).mean())
    assert {len(values) for values in trained.history.values()} == {1}


def test_the_hand_written_step_computes_what_the_step_through_treadle_does(digits):
    train, _ = digits.load()
    images, labels = jnp.asarray(train.images[:8]), jnp.asarray(train.labels[:8])
    objects = digits.fresh_objects()
    by_hand = digits.hand_written_step(images, labels)
    for _ in range(2):
        digits.train_step(*objects, images, labels)
        carried = by_hand()
    rest = nnx.split(objects, nnx.RngKey, ...)[2]
    for ours, theirs in zip(jax.tree.leaves(rest), carried, strict=True):
        # Adam divides by the size of the gradient, so rounding shows where it is close to zero.
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_table_has_a_line_for_each_way(digits, monkeypatch):
    import digits_timing

    monkeypatch.setattr(digits_timing.importlib.util, "find_spec", lambda name: None)
    ran = []

    def maker(name):
        return lambda images, labels: lambda: ran.append(name)

    ways = {name: maker(name) for name in ("treadle.jit", digits_timing.BASE)}
    table = digits_timing.compare_steps(ways, jnp.ones(2), jnp.ones(2), rounds=4).splitlines()
    assert [line.startswith(name) for name, line in zip(ways, table[1:], strict=False)] == [
        True
    ] * 2
    assert table[2].endswith(" 1.000")
    assert "flax is not installed" in table[3]
    assert ran.count("treadle.jit") == ran.count(digits_timing.BASE) == 3 + 4


@pytest.mark.parametrize(("accuracy", "status"), [(0.5, 1), (0.98, 0)])
def test_the_exit_status_tells_whether_enough_was_learned(
    digits, monkeypatch, tmp_path, capsys, accuracy, status
):
    history = {"loss": [1.0, 0.1], "train": [0.5, 0.9], "test": [0.4, accuracy]}

    def train(train_data, test_data, epochs, seed):
        predicted = (test_data.labels + (np.arange(len(test_data.labels)) % 50 == 0)) % 10
        return digits.Trained(accuracy, predicted, history, 10, 1.0)

    monkeypatch.setattr(digits, "train", train)
    monkeypatch.setattr(digits, "compare_steps", lambda *args, **kwargs: "the table")
    monkeypatch.setattr("sys.argv", ["digits.py", "--output", str(tmp_path / "out")])
    assert digits.main() == status
    printed = capsys.readouterr().out
    assert "the table" in printed
    assert ("NOT enough" in printed) == bool(status)
    pictures = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in pictures] == ["digits-confusion.png", "digits-curves.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
