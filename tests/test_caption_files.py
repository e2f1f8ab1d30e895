"""Caption data in COCO and Karpathy formats: reading, faults, the cache of images, a run."""

import dataclasses
import gzip
import json
import os
import pathlib
import pickle
import re
import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pooch
import pytest
from PIL import Image

import evals
import train
import train.formats.lazy
from evals.tasks.captioning import Captioned, caption, captioned
from train.batches import Batches, fit_scaling
from train.data import captions, load_data, parse, with_settings
from train.engine.member import Member
from train.engine.parallel import Layout, Parallel
from train.formats import DataError, Mapped, map_images, read_image
from train.stream import Stream, make_batches
from train.tasks import Captioning, to_dict
from train.tokens import END
from zoo import captioner, convnet

pytest.importorskip("grain")
SHAPE = (6, 5, 3)
WORDS: dict[str, Any] = {"tokens": "words"}
SKIP: dict[str, Any] = {"tokens": "words", "max_length": 12, "on_bad": "skip"}
SPLITS = [*["train"] * 20, *["restval"] * 4, *["val"] * 8, *["test"] * 6]
COLORS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """A separate user cache."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)


def said(number: int) -> list[str]:
    """Captions of an image in natural writing."""
    color = COLORS[number % 3]
    return [
        f"A {color} thing, number {number}.",
        f"It's  {color.upper()}!",
        f"The picture is {color}",
    ][: 1 + number % 3]


def draw(file: pathlib.Path, number: int) -> None:
    """A uniformly coloured image; each has a different size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(
        0, 60, (7 + number % 4, 6 + number % 5, 3), np.uint8
    )
    pixels[..., number % 3] += 180
    Image.fromarray(pixels).save(file)


def karpathy(root: pathlib.Path, change=None) -> str:
    """Karpathy's JSON and its images; returns the data's name."""
    images = []
    for number, split in enumerate(SPLITS):
        sentences = [
            {"raw": raw, "tokens": captions.plain(raw).split(), "sentid": 0} for raw in said(number)
        ]
        images.append(
            {"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences}
        )
        draw(root / "images" / f"{number}.png", number)
    content = {"images": images, "dataset": "tiny"}
    if change is not None:
        change(content)
    (root / "dataset.json").write_text(json.dumps(content))
    return f"captions:{root / 'dataset.json'}"


def coco(root: pathlib.Path, change=None) -> str:
    """The same as COCO's JSON: restval and train as train2014, val and test as val2014."""
    number = 0
    for split, count in (("train", 24), ("val", 14)):
        images, annotations = [], []
        for _ in range(count):
            name = f"COCO_{split}2014_{number:012}.png"
            images.append({"id": 100 + number, "file_name": name})
            annotations += [{"image_id": 100 + number, "caption": raw} for raw in said(number)]
            draw(root / f"{split}2014" / name, number)
            number += 1
        content = {
            "images": images,
            "annotations": [{"id": 7 * n, **each} for n, each in enumerate(annotations)],
        }
        if change is not None:
            change(content)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"captions_{split}2014.json").write_text(json.dumps(content))
    return f"captions:{root}/annotations/captions_{{split}}2014.json"


def load(
    name: str, how: Mapping[str, Any] = WORDS, shape: tuple[int, int, int] = SHAPE
) -> train.Dataset:
    return load_data(name, image_shape=shape, **how)


def in_memory(table: Mapping[str, Any]) -> dict[str, Any]:
    return {**table, "inputs": {**table["inputs"], "image": table["inputs"]["image"][:]}}


def equal(one, other) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(jax.tree.leaves(same))


# ---------------------------------------------------------------- tables


def test_rows_pair_images_with_captions_one_per_test_image(tmp_path):
    dataset = load(karpathy(tmp_path))
    assert isinstance(dataset.task, Captioning)
    assert dataset.task.max_length == captions.Config().max_length
    tokenizer = dataset.task.target
    numbers = {"train": range(24), "validation": range(24, 32), "test": range(32, 38)}
    for split, members in numbers.items():
        expected = [
            (number, captions.plain(text))
            for number in members
            for text in said(number)[: 1 if split == "test" else None]
        ]
        table = dataset.splits[split]
        image, target = table["inputs"]["image"], table["inputs"]["target"]
        assert isinstance(image, Mapped)
        assert (image.shape, image.dtype) == ((len(expected), *SHAPE), np.uint8)
        assert dataset.splits[split].extras["sentences"] == tuple(
            ("", text) for _, text in expected
        )
        assert table["mask"].shape == table["targets"].shape == target.shape
        for row, (number, text) in enumerate(expected):
            np.testing.assert_array_equal(
                image[row], read_image(tmp_path / "images" / f"{number}.png", SHAPE)
            )
            count = table["mask"][row].sum()
            assert table["targets"][row, :count].tolist() == [*tokenizer.encode(text), END]
            assert target[row, :count].tolist() == [END, *table["targets"][row, : count - 1]]
            assert not table["mask"][row, count:].any()
            if split == "train":
                assert tokenizer.decode(table["targets"][row]) == text
        if split != "train":
            references = [
                tuple(captions.plain(text) for text in said(number)) for number, _ in expected
            ]
            assert dataset.splits[split].extras["references"] == tuple(references)
    assert "references" not in dataset.splits["train"].extras
    assert "images: 24 train, 8 validation, 6 test; 48 captions in training" in dataset.notes


def test_coco_and_karpathy_formats_agree_and_validation_is_halved_without_a_test_split(
    tmp_path,
):
    one, other = load(karpathy(tmp_path / "karpathy")), load(coco(tmp_path / "coco"))
    assert equal(in_memory(one.splits["train"]), in_memory(other.splits["train"]))
    assert to_dict(one.task) == to_dict(other.task)
    pixels = {
        split: {image.tobytes() for image in other.splits[split]["inputs"]["image"][:]}
        for split in other.splits
    }
    assert [len(pixels[split]) for split in ("train", "validation", "test")] == [24, 7, 7]
    assert not pixels["validation"] & pixels["test"]
    held_out = {
        read_image(tmp_path / "karpathy" / "images" / f"{number}.png", SHAPE).tobytes()
        for number in range(24, 38)
    }
    assert pixels["validation"] | pixels["test"] == held_out
    assert (
        load(f"captions:{tmp_path}/coco/annotations/captions_{{split}}2014.json").fingerprint
        == other.fingerprint
    )


def test_missing_splits_are_drawn_by_image(tmp_path):
    coco(tmp_path)
    alone = load(f"captions:{tmp_path}/annotations/captions_train2014.json")
    counts = {
        split: len(np.unique(table["inputs"]["image"].index))
        for split, table in alone.splits.items()
    }
    assert counts == {"train": 20, "validation": 2, "test": 2}
    assert (
        len(
            np.unique(
                np.concatenate([table["inputs"]["image"].index for table in alone.splits.values()])
            )
        )
        == 24
    )

    def without_validation(content):
        content["images"] = [each for each in content["images"] if each["split"] != "val"]

    made = load(karpathy(tmp_path / "karpathy", without_validation))
    counts = {
        split: len(np.unique(table["inputs"]["image"].index))
        for split, table in made.splits.items()
    }
    assert counts == {"train": 22, "validation": 2, "test": 6}
    with pytest.raises(DataError, match="no image with a caption in train"):
        load(
            karpathy(
                tmp_path / "none", lambda content: content.update(images=content["images"][-6:])
            )
        )


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("A dog.", "a dog"),
        (" Two  men's T-shirts,\n(red) ", "two mens tshirts red"),
        ("“Été” – 20 €…", "été 20"),
        ("हिन्दी।", "हिन्दी"),
        ("?!", ""),
    ],
)
def test_captions_are_lower_case_without_punctuation(raw, text):
    assert captions.plain(raw) == text


def test_tokens_are_kept_and_raw_text_is_the_fallback(tmp_path):
    def change(content):
        content["images"][32]["sentences"] = [
            {"raw": "Never READ.", "tokens": ["Mr.", "t-shirt"]},
            {"raw": "Only raw!"},
        ]

    dataset = load(karpathy(tmp_path, change))
    assert dataset.splits["test"].extras["references"][0] == ("Mr. t-shirt", "only raw")
    (tmp_path / "dataset.json.gz").write_bytes(
        gzip.compress((tmp_path / "dataset.json").read_bytes())
    )
    assert load(f"captions:{tmp_path / 'dataset.json.gz'}").fingerprint == dataset.fingerprint


def test_subwords_are_those_of_the_training_captions(tmp_path):
    dataset = load(karpathy(tmp_path), {"subwords": 40})
    table = dataset.splits["train"]
    assert isinstance(dataset.task, Captioning)
    decoded = [dataset.task.target.decode(row) for row in table["targets"]]
    assert decoded == [text for _, text in dataset.splits["train"].extras["sentences"]]


@pytest.mark.parametrize(
    "place",
    ["", "images", "val2014", "images/val2014", "../val2014", "../images/val2014", "../images"],
)
def test_image_locations(tmp_path, place):
    root = tmp_path / "json"

    def change(content):
        content["images"][24]["filepath"] = "val2014"

    name = karpathy(root, change)
    before = load(name)
    target = root / place / "24.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    (root / "images" / "24.png").rename(target)
    assert load(name).fingerprint == before.fingerprint


# ---------------------------------------------------------------- faults


def _karpathy_fault(field):
    """Faults of the third image."""

    def change(content):
        image = content["images"][2]
        match field:
            case "empty":
                image["sentences"][1] = {"raw": "x", "tokens": []}
            case "long":
                image["sentences"][1] = {"raw": "word " * 13}
            case "none":
                image["sentences"] = []
            case "no field":
                del image["sentences"]
            case "missing":
                image["filename"] = "gone.png"
            case "twice":
                image["filename"] = "1.png"
            case "imgid":
                image["imgid"] = 1

    return change


@pytest.mark.parametrize(
    ("fault", "what", "named", "rows"),
    [
        ("empty", "empty captions", "caption 1 of 2.png", 47),
        ("long", "captions of more than max_length=12 tokens", r"2.png \(word word", 47),
        ("none", "images without a caption", "2.png", 45),
        ("no field", "images without a caption", "2.png", 45),
        (
            "missing",
            "images that are in none of .*json, .*json/images, .*, .*/images",
            "gone.png",
            45,
        ),
        ("twice", "images that are listed twice", "1.png", 45),
        ("imgid", "images with a duplicate imgid", "2.png", 45),
        ("damaged", "images that cannot be read", ".*/images/2.png", 45),
    ],
)
def test_unusable_images_are_named_or_skipped_and_counted(tmp_path, fault, what, named, rows):
    name = karpathy(tmp_path / "json", _karpathy_fault(fault))
    if fault == "damaged":
        file = tmp_path / "json" / "images" / "2.png"
        file.write_bytes(file.read_bytes()[:50])
    for _ in range(2):  # the second time, images are already decoded
        with pytest.raises(
            DataError, match=f"^data {name!r}: {what}: {named}.*; data.on_bad=skip leaves them out$"
        ):
            load(name, {**SKIP, "on_bad": "error"})
        left = load(name, SKIP)
        assert len(left.splits["train"]["targets"]) == rows
        (note,) = (note for note in left.notes if note.startswith("left out"))
        assert re.fullmatch(f"left out: 1 {what}, such as {named}.*", note)


@pytest.mark.parametrize(
    ("change", "what", "named", "images"),
    [
        (
            lambda content: content["annotations"].append(
                {"id": 9999, "image_id": 5, "caption": "x"}
            ),
            "annotations of an image_id that no image has",
            r"annotation 9999 of captions_train2014.json \(image_id 5\)",
            24,
        ),
        (
            lambda content: content["annotations"].append(
                {"id": 0, "image_id": content["images"][0]["id"], "caption": "x"}
            ),
            "annotations with a duplicate id",
            "annotation 0 of captions_train2014.json",
            24,
        ),
        (
            lambda content: content["images"][1].update(id=content["images"][0]["id"]),
            "images with a duplicate id",
            "COCO_train2014_000000000000.png, COCO_train2014_000000000001.png",
            22,
        ),
        (
            lambda content: content["annotations"][1].update(caption=" . "),
            "empty captions",
            "annotation 7 of captions_train2014",
            24,
        ),
    ],
)
def test_faults_of_annotations(tmp_path, change, what, named, images):
    name = coco(tmp_path, change)
    with pytest.raises(DataError, match=f"{what}: {named}"):
        load(name)
    left = load(name, SKIP)
    one = named.partition(", COCO")[0]  # of the two that are named
    assert any(re.fullmatch(rf"left out: \d {what}, such as {one}.*", note) for note in left.notes)
    assert len(np.unique(left.splits["train"]["inputs"]["image"].index)) == images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.pop("images"),
            r"dataset.json: expected Karpathy's \{.*\} or COCO's \{",
        ),
        (lambda content: content.update(images=[]), "expected Karpathy's"),
        (
            lambda content: content["images"][3].pop("filename"),
            r"images\[3\]: filename is 'None', expected text",
        ),
        (
            lambda content: content["images"][3].update(split="held"),
            r"images\[3\]: split is 'held', expected train, .*val, dev, test, testing, restval",
        ),
        (
            lambda content: content["images"][3].update(sentences={}),
            r"images\[3\]: sentences is '{}', expected a list",
        ),
        (
            lambda content: content["images"][3].update(sentences=["x"]),
            r"images\[3\]: sentences\[0\]: raw is 'None', expected text",
        ),
        (
            lambda content: content["images"][3].update(sentences=[{"tokens": [1]}]),
            r"sentences\[0\]: tokens are '\[1\]'",
        ),
        (
            lambda content: content["images"][3].update(filename="../x.png"),
            r"file name '../x.png', expected one within a folder",
        ),
        (lambda content: content["images"][3].update(filename="a\0b"), "in none of"),
        (lambda content: content["images"][3].update(filename="\ud800"), "in none of"),
        (lambda content: content["images"].append(7), r"images\[38\]: filename is 'None'"),
        (
            lambda content: content.update(annotations=[]),
            r"images\[0\]: id is 'None', expected a number or text",
        ),
    ],
)
def test_unknown_formats_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load(karpathy(tmp_path, change))


def test_faults_of_whole_files(tmp_path):
    name = karpathy(tmp_path)
    (tmp_path / "train.json").write_bytes((tmp_path / "dataset.json").read_bytes())
    with pytest.raises(
        DataError,
        match=r"train.json has all splits, expected one file, and no \{split\} in its name",
    ):
        load(f"captions:{tmp_path}/{{split}}.json")
    with pytest.raises(DataError, match=r"no file .*\{split\}.js with \{split\} replaced by train"):
        load(f"captions:{tmp_path}/{{split}}.js")
    with pytest.raises(DataError, match=r"no such file or folder: .*none\.json"):
        load(f"captions:{tmp_path}/none.json")
    (tmp_path / "dataset.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"dataset\.json: unreadable"):
        load(name)
    (tmp_path / "dataset.json").write_text('{"images": []}', "utf-16")
    with pytest.raises(DataError, match=r"dataset\.json: UTF-16; expected text in UTF-8"):
        load(name)
    with pytest.raises(DataError, match="image_shape="):
        load(name, shape=(6, 5, 2))
    name = karpathy(tmp_path)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(
        DataError,
        match=r"no image with a caption in train, validation, test; left out: 38 images that are "
        r"in none of",
    ):
        load(name, SKIP)


# ---------------------------------------------------------------- decoded once


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Records the names of images as they are decoded."""
    seen = []
    original = train.formats.lazy.read_image
    monkeypatch.setattr(
        train.formats.lazy,
        "read_image",
        lambda file, shape: seen.append(file.name) or original(file, shape),
    )
    return seen


def kept(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    return sorted((tmp_path / "cache" / "purezoo" / "captions").iterdir())


def test_decoded_images_are_cached_by_content(tmp_path, opened):
    name = karpathy(tmp_path)
    first = load(name)
    assert sorted(opened) == sorted(f"{number}.png" for number in range(38))
    opened.clear()
    assert (
        load(name, {"tokens": "characters"}).fingerprint
        != load(name).fingerprint
        == first.fingerprint
    )
    assert not opened
    assert len(kept(tmp_path)) == 1
    draw(tmp_path / "images" / "3.png", 4)
    changed = load(name)
    assert len(opened) == 38
    assert changed.fingerprint != first.fingerprint
    load(name, shape=(6, 5, 1))
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("version", ["train.formats.lazy.READ_VERSION", "PIL.__version__"])
def test_decoded_cache_depends_on_the_decoder(tmp_path, opened, monkeypatch, version):
    name = karpathy(tmp_path)
    load(name)
    opened.clear()
    monkeypatch.setattr(version, "another")
    load(name)
    assert len(opened) == 38
    assert len(kept(tmp_path)) == 2


def test_decoded_images_need_a_cache_folder(tmp_path, monkeypatch):
    name = karpathy(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pooch, "os_cache", lambda project: pathlib.Path("~/.cache") / project)
    with pytest.raises(
        DataError,
        match="images are decoded into a file: no writable home folder",
    ):
        load(name)
    assert not (tmp_path / "~").exists()


def test_repaired_image_is_read_again(tmp_path, monkeypatch):
    name = karpathy(tmp_path)
    whole = load(name, SKIP).fingerprint
    kept(tmp_path)[0].unlink()
    original = train.formats.lazy.read_image

    def refuse(file, shape):
        if file.name == "3.png":
            raise DataError(f"{file}: unreadable: Permission denied")
        return original(file, shape)

    monkeypatch.setattr(train.formats.lazy, "read_image", refuse)
    assert load(name, SKIP).fingerprint != whole
    monkeypatch.setattr(train.formats.lazy, "read_image", original)
    assert load(name, SKIP).fingerprint == whole


def test_incomplete_cache_file_is_never_used(tmp_path, opened, monkeypatch):
    name = karpathy(tmp_path)
    first = load(name)
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    train.formats.lazy._pixels_and_digests.cache_clear()
    file.write_bytes(whole[:-1])
    (file.parent / "left-by-a-killed-process.part").write_bytes(whole[:100])
    assert load(name).fingerprint == first.fingerprint
    assert file.read_bytes() == whole
    file.unlink()
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(DataError, match=f"{file}: cannot be written: No space left"):
        load(name)
    assert [each.name for each in kept(tmp_path)] == ["left-by-a-killed-process.part"], (
        "nothing is left of it"
    )


def test_an_array_on_disk_behaves_as_one_in_memory(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        draw(file, number)
    counts = []
    images = map_images(files, SHAPE, tmp_path / "maps", counts.append)
    array = np.stack([read_image(file, SHAPE) for file in files])
    assert sum(counts) == len(images) == 5
    chosen = images.select(np.array([4, 0, 0, 2]))
    for mine, theirs in (
        (images, array),
        (chosen, array[[4, 0, 0, 2]]),
        (images.followed_by(chosen), array[[*range(5), 4, 0, 0, 2]]),
    ):
        assert equal(mine[:], theirs)
        assert equal(mine[1], theirs[1])
        assert equal(mine[np.array([3, 3, 1])], theirs[[3, 3, 1]])
        assert equal(mine[1:3], theirs[1:3])
        assert mine.shape == theirs.shape
        assert mine.ndim == 4
    assert chosen.digest() == images.select(np.array([4, 0, 0, 2])).digest() != images.digest()
    mine = chosen[0]
    mine[...] = 0  # a copy
    assert equal(chosen[0], array[4])
    sent = pickle.dumps(chosen)
    assert len(sent) < 1000
    assert equal(pickle.loads(sent)[:], chosen[:])
    assert images.readable().all()
    files[1].write_bytes(b"not an image")
    damaged = map_images(files, SHAPE, tmp_path / "maps", counts.append)
    assert damaged.readable().tolist() == [True, False, True, True, True]
    assert not damaged[1].any()


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("devices", "workers"), [(1, 0), (3, 0), (1, 1)])
def test_batches_are_those_in_memory_bit_for_bit(tmp_path, devices, workers):
    table = load(karpathy(tmp_path)).joined("train", "validation")
    scaling = fit_scaling("unit", table["inputs"]["image"], (0.0, 255.0))
    how = {"seed": 3, "scaling": scaling, "layout": Layout(Parallel(devices=devices))}
    whole, streamed = (
        Batches(in_memory(table), 14, **how),
        Stream(table, 14, **how, workers=workers),
    )
    made = make_batches(table, 14)
    assert isinstance(made, Stream)
    assert made.workers == 0
    assert type(make_batches(in_memory(table), 14)) is Batches
    assert jax.eval_shape(streamed.load, streamed.example(14)) == jax.eval_shape(
        whole.load, whole.example(14)
    )
    first, count = whole.steps_per_epoch + 2, 3
    for step in range(first):
        assert equal(whole.batch(step), streamed.batch(step))
    plans = [(each.arrays(first), each.plan(first, count)) for each in (whole, streamed)]
    for index in range(count):
        loaded = (
            jax.jit(each.load)((arrays, jax.tree.map(lambda leaf: leaf[index], plan)))  # noqa: B023 (used at once)
            for each, (arrays, plan) in zip((whole, streamed), plans, strict=True)
        )
        assert equal(*loaded)
    streamed.close()


# ---------------------------------------------------------------- a run


STAGES = (convnet.Stage(features=4, kernel=(4,), stride=(4,), padding="valid"),)


@pytest.fixture(scope="module", name="recipe")
def _recipe(tmp_path_factory):
    encoder = dataclasses.replace(
        captioner.PRESETS["digit_scenes"].encoder, shape=(8, 8, 3), stages=STAGES
    )
    return train.Recipe(
        name="tiny-captions",
        model=captioner.Config(encoder=encoder, vocabulary=2, features=8, units=12),
        data=with_settings(
            parse(karpathy(tmp_path_factory.mktemp("captions"))),
            {**WORDS, "image_shape": (8, 8, 3)},
        ),
        optimizer=train.Optimizer(name="adam", learning_rate=0.02),
        batch_size=12,
        steps=16,
        eval_every=2,
        select_by="loss",
        select_mode="min",
    )


def test_a_run_is_stopped_resumed_and_evaluated(recipe, tmp_path, monkeypatch):
    whole = train.run(recipe, tmp_path / "whole", quiet=True)
    recorded = Member.record

    def record(self, line):
        recorded(self, line)
        if line["step"] >= 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "record", record)
        assert not train.run(recipe, tmp_path / "run", quiet=True).complete
    resumed = train.run(recipe, tmp_path / "run", quiet=True)
    assert resumed.complete
    for mine, theirs in zip(
        jax.tree.leaves(resumed.state.params), jax.tree.leaves(whole.state.params), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    evaluation = evals.evaluate(tmp_path / "run")
    measured, task = evaluation.measured, evaluation.run.task
    assert isinstance(measured, Captioned)
    assert isinstance(task, Captioning)
    assert evaluation.count == len(measured.captions) == 6
    assert evaluation.metrics["test loss nats"] < np.log(len(task.target.vocabulary))
    assert evaluation.run.data.input_shape == (8, 8, 3)
    images = evaluation.table["inputs"]["image"]
    streamed, in_memory_ = caption(evaluation.run, images), caption(evaluation.run, images[:])
    assert [each.text for each in streamed] == [each.text for each in in_memory_]
    shown = captioned(evaluation)
    assert shown is not None
    assert evaluation.subject.dataset.splits["test"].extras["sentences"][0][1] in shown
    coco(tmp_path / "coco")
    other = evals.evaluate(
        tmp_path / "run", data=f"captions:{tmp_path}/coco/annotations/captions_val2014.json"
    )
    assert isinstance(other.measured, Captioned)
    assert other.count == len(other.measured.captions) == 14, "a set without splits is not divided"
    assert to_dict(other.subject.dataset.task) == to_dict(task)
    assert other.measured.references[0] == [captions.plain(text) for text in said(24)]
    assert other.file.name.startswith("eval-on-")
    with pytest.raises(DataError, match=r"inputs \(48, 48, 1\); allowed for this run: \(8, 8, 3\)"):
        evals.evaluate(tmp_path / "run", data="digit_scenes:20")
    draw(pathlib.Path(recipe.data.path).parent / "images" / "35.png", 3)
    with pytest.raises(train.RunError, match="its content has changed"):
        evals.evaluate(tmp_path / "run")


def test_images_of_another_shape_than_the_models_are_refused_before_they_are_decoded(
    recipe, tmp_path
):
    with pytest.raises(
        ValueError, match=r"image_shape=\(28, 28, 3\), allowed for this zoo.captioner: \(8, 8, 3\)"
    ):
        train.run(
            dataclasses.replace(
                recipe, data=dataclasses.replace(recipe.data, image_shape=(28, 28, 3))
            ),
            tmp_path / "run",
            quiet=True,
        )
    with pytest.raises(
        ValueError, match=r"image_shape=\(28, 28, 1\), allowed for this zoo.captioner"
    ):
        train.fit(captioner, recipe.model, str(recipe.data))
    with pytest.raises(
        ValueError, match="preprocess='zscore', allowed for streamed data: none, unit, imagenet"
    ):
        train.run(dataclasses.replace(recipe, preprocess="zscore"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "cache").exists()
