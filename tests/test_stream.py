"""Streamed data: the same batches as in memory, for any decoder and resumed at any step."""

import builtins
import multiprocessing
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from train.batches import Batches, fit_scaling
from train.data import DataError, load_data
from train.engine.parallel import Layout, Parallel
from train.formats import Images
from train.stream import Stream, make_batches

pytest.importorskip("grain")
SHAPE = (6, 5, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """45 images of noise, each of another size."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(45):
        name = root / ("cat" if number % 3 else "dog") / f"{number}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4 + number % 7, 4 + number % 5, 3), np.uint8)).save(
            name
        )
    return root


def load(folder: pathlib.Path, kind: str = "stream") -> dict:
    return dict(load_data(f"{kind}:{folder}", image_shape=SHAPE).splits["train"])


def pair(
    folder: pathlib.Path, workers: int = 0, layout: Layout | None = None, seed: int | None = 3
) -> tuple[Batches, Stream]:
    """37 training examples in batches of 8, in memory and streamed."""
    scaling = fit_scaling("unit", load(folder)["inputs"], (0.0, 255.0))
    how = {"seed": seed, "scaling": scaling, "layout": layout}
    return Batches(load(folder, "folder"), 8, **how), Stream(
        load(folder), 8, **how, workers=workers
    )


def equal(one, other) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(jax.tree.leaves(same))


def of_step(batches: Batches, step: int, first: int, count: int):
    """The batch of a step as the training step loads it from a plan."""
    entry = jax.tree.map(lambda leaf: leaf[step - first], batches.plan(first, count))
    return jax.jit(batches.load)((batches.arrays(0), entry))


@pytest.mark.parametrize("devices", [1, 8, 3])
def test_batches_are_those_in_memory_over_two_epochs(folder, devices):
    in_memory, streamed = pair(folder, layout=Layout(Parallel(devices=devices)))
    assert streamed.steps_per_epoch == in_memory.steps_per_epoch == 5
    assert streamed.padded == in_memory.padded == (9 if devices == 3 else 8)
    for step in range(10):
        assert equal(of_step(in_memory, step, step, 1), of_step(streamed, step, step, 1))
    assert not np.asarray(streamed.batch(9)["mask"])[5:].any(), "the last batch is padded"
    streamed.close()


def test_worker_processes_change_nothing_and_exit(folder):
    in_memory, streamed = pair(folder, workers=2)
    for step in range(6):
        assert equal(in_memory.batch(step), streamed.batch(step))
    assert len(multiprocessing.active_children()) == 2
    streamed.close()
    assert not multiprocessing.active_children()


def test_steps_can_be_requested_in_any_order(folder):
    in_memory, streamed = pair(folder)
    for first, count in (
        (7, 2),
        (9, 2),
        (10, 3),
        (0, 1),
        (0, 4),
        (2, 4),
    ):  # resumed, overlapping, repeated, back
        for step in range(first, first + count):
            assert equal(
                of_step(in_memory, step, first, count), of_step(streamed, step, first, count)
            )
    for step in (3, 1, 4):
        assert equal(in_memory.batch(step), streamed.batch(step))
    streamed.close()
    assert equal(in_memory.batch(2), streamed.batch(2)), "it may be used again"
    assert equal(in_memory.with_seed(9).batch(2), streamed.with_seed(9).batch(2))


def test_evaluation_prefetches_across_the_last_batch(folder):
    in_memory, streamed = pair(folder, seed=None)
    reader = None
    for step in [*range(5), *range(5)]:
        assert equal(in_memory.batch(step), streamed.batch(step))
        reader = reader or streamed._reading[0]
        assert streamed._reading[0] is reader, "nothing starts anew"
    assert equal(in_memory.batch(6), streamed.batch(1))


class Half(Layout):
    """The rows that one of two processes with one device each puts there."""

    def __init__(self, process: int) -> None:
        super().__init__(Parallel(devices=2))
        self.process = process

    def local_rows(self, rows: int) -> slice:
        return slice(self.process * rows // 2, (self.process + 1) * rows // 2)

    def from_process_local(self, tree, rows):
        return tree


def test_shards_of_two_processes_form_the_batch(folder, monkeypatch):
    whole = pair(folder, layout=Layout(Parallel(devices=2)))[1].plan(3, 2)
    decoded = []
    original = Images.__getitem__
    monkeypatch.setattr(
        Images, "__getitem__", lambda self, rows: decoded.append(len(rows)) or original(self, rows)
    )
    shares = []
    for process in (0, 1):
        streamed = Stream(load(folder), 8, seed=3, layout=Half(process), workers=0)
        shares.append(jax.tree.map(np.asarray, streamed.plan(3, 2)))
        streamed.close()
    assert max(decoded) == 4, "each decodes its own"
    assert equal(
        jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *shares), jax.device_get(whole)
    )


def test_shapes_are_known_without_decoding(folder, monkeypatch):
    in_memory, streamed = pair(folder)
    expected = jax.eval_shape(in_memory.load, in_memory.example(8))
    monkeypatch.setattr(Images, "__getitem__", None)
    assert jax.eval_shape(streamed.load, streamed.example(8)) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(folder, tmp_path, workers):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for file in (folder / label).iterdir():
            (tmp_path / label / file.name).write_bytes(file.read_bytes())
    streamed = Stream(load(tmp_path), 8, workers=workers)
    broken = tmp_path / load(tmp_path)["inputs"].index[streamed.rows(2)[3]].decode()
    broken.write_bytes(broken.read_bytes()[:60])
    streamed.batch(0)
    streamed.batch(1)
    with pytest.raises(DataError, match=f"^{broken}: unreadable"):
        streamed.batch(2)
    assert not multiprocessing.active_children()


def test_a_streamed_set_has_the_splits_of_the_folder(folder):
    there, here = (
        load_data(f"{kind}:{folder}", image_shape=SHAPE) for kind in ("folder", "stream")
    )
    assert there.task.labels == here.task.labels
    for split, table in there.splits.items():
        images = here.splits[split]["inputs"]
        assert (images.shape, images.dtype, images.ndim) == (table["inputs"].shape, np.uint8, 4)
        assert equal(images[:], table["inputs"])
        assert equal(images[np.array([1, 0])], table["inputs"][[1, 0]])
        assert equal(images[1], table["inputs"][1])
        assert equal(here.splits[split]["targets"], table["targets"])
    both = here.joined("train", "validation")["inputs"]
    assert equal(both[:], there.joined("train", "validation")["inputs"])
    assert isinstance(make_batches(here.splits["train"], 8), Stream)
    assert type(make_batches(there.splits["train"], 8)) is Batches


def test_the_fingerprint_tells_content_but_not_names_and_times(folder, tmp_path):
    def fingerprint(root: pathlib.Path, shape: tuple[int, int, int] = SHAPE) -> str:
        return load_data(f"stream:{root}", image_shape=shape).fingerprint

    before = fingerprint(folder)
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(moved) == before
    assert fingerprint(moved, (6, 5, 1)) != before
    file = next((moved / "cat").iterdir())
    pixels, data = np.array(Image.open(file)), file.read_bytes()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    assert fingerprint(moved) != before
    file.write_bytes(data)
    assert fingerprint(moved) == before
    moved.rename(folder)


def test_unsupported_uses_of_streamed_data_are_refused(folder, monkeypatch):
    images = load(folder)["inputs"]
    for kind in ("standardize", "zscore"):
        with pytest.raises(
            ValueError, match=f"preprocess='{kind}', allowed for streamed data: none, unit"
        ):
            fit_scaling(kind, images, (0.0, 255.0))
    with pytest.raises(ValueError, match="replicas: 2, allowed for streamed data: 1"):
        Stream(load(folder), 8, layout=Layout(Parallel(), 2))
    monkeypatch.setenv("ZOO_STREAM_WORKERS", "3")
    assert Stream(load(folder), 8).workers == 3
    monkeypatch.setenv("ZOO_STREAM_WORKERS", "many")
    with pytest.raises(ValueError, match="ZOO_STREAM_WORKERS='many', allowed: a number"):
        Stream(load(folder), 8)
    real = builtins.__import__

    def without_grain(name, *rest):
        if name == "grain":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_grain)
    with pytest.raises(ValueError, match=r"pip install 'purezoo\[stream\]'"):
        Stream(load(folder), 8, workers=0)
