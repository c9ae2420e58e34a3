from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

pytest.importorskip("tqdm", reason="the examples need treadle[examples]")


@pytest.fixture
def text(monkeypatch):
    import text_transformer

    monkeypatch.setattr(text_transformer, "WINDOW", 8)
    monkeypatch.setattr(text_transformer, "BATCH", 4)
    return text_transformer


def tiny(text):
    return text.Transformer(width=16, heads=2, depth=1, rngs=nnx.Rngs(0))


def test_the_sources_are_there_in_every_version_of_python(text):
    for name in (*text.SOURCES, *text.UNSEEN):
        assert len(text.read_sources((name,))) > 1000, name


def test_windows_are_stretches_of_the_text(text):
    codes = np.arange(50, dtype=np.int32)
    windows = text.draw_windows(codes, np.random.default_rng(0), 3)
    assert windows.shape == (3, 9)
    assert (np.diff(windows) == 1).all()


def test_writing_with_the_cache_is_reading_the_whole_window_each_time(text):
    model = tiny(text)
    # Far from the start, so that there is something to say.
    for kernel in (model.characters.embedding, model.positions.embedding):
        kernel.value = kernel.value * 50
    written = text.write(model, "de", 12, heat=1e-6, seed=0)

    model.eval(decode=False)
    read = nnx.jit(lambda model, codes: model(codes))
    codes = [text.CODES[character] for character in "de"]
    window = list(codes)
    while len(codes) < 14:
        if len(window) > text.WINDOW:
            window = codes[-text.WINDOW // 2 :]
        # What follows a position does not change what is read there, so one shape serves all.
        padded = window + [0] * (text.WINDOW - len(window))
        drawn = int(read(model, jnp.asarray([padded]))[0, len(window) - 1].argmax())
        codes.append(drawn)
        window.append(drawn)
    assert written == "".join(text.ALPHABET[code] for code in codes)


def test_training_lowers_the_loss(text, capsys):
    model = tiny(text)
    before = np.log(len(text.ALPHABET))
    assert text.train(model, steps=20, seed=0) < before - 0.2


@pytest.mark.parametrize(("loss", "status"), [(5.0, 1), (1.0, 0)])
def test_the_exit_status_tells_whether_enough_was_learned(text, monkeypatch, capsys, loss, status):
    monkeypatch.setattr(text, "train", lambda model, steps, seed: loss)
    monkeypatch.setattr(text, "write", lambda *args: "def treadle(): ...")
    monkeypatch.setattr("sys.argv", ["text_transformer.py", "--short"])
    assert text.main() == status
    assert "def treadle(): ..." in capsys.readouterr().out
