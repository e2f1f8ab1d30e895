"""Scenes with captions: captions match boxes, boxes fit objects, held-out kinds stay held out."""

import itertools
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data import kinds_of
from train import stamps
from train.composition import MARGIN, RELATIONS, caption, relation
from train.data import DataError, load_data, scenes
from train.data.scenes import DIGITS, HELD_OUT, PHRASES, SIDES, digit_scenes, enlarged
from train.stamps import phrase
from train.tasks import Captioning, to_dict
from train.tokens import END, UNKNOWN, pieces

ROOT = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute()

# ---------------------------------------------------------------- relations


def test_the_relation_is_that_of_the_documented_rule():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (2000, 3, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 12, low.shape)], axis=2)
    boxes[:1000, 2] = 0
    axes, leads = relation(boxes)
    for found, axis, lead in zip(boxes, axes, leads, strict=True):
        objects = [box for box in found.tolist() if box[2]]
        spreads = {}
        for each in (0, 1):
            spans = sorted((box[each], box[each + 2]) for box in objects)
            if all(before[1] <= after[0] for before, after in itertools.pairwise(spans)):
                spreads[each] = (sum(spans[-1]) - sum(spans[0])) / 2
        if not spreads:
            assert lead == -1
        else:
            assert spreads[axis] == max(spreads.values())
            assert lead == (abs(spreads[0] - spreads[1]) if len(spreads) == 2 else spreads[axis])
    assert len(set(leads < 0)) == 2


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0, 0, 4, 4]], "A"),
        ([[0, 0, 4, 4], [4, 2, 8, 9]], "A above B"),
        ([[4, 2, 8, 9], [0, 0, 4, 4]], "B above A"),
        ([[3, 6, 7, 9], [0, 0, 4, 4]], "B left of A"),
        ([[0, 0, 4, 4], [9, 6, 12, 9]], "A above B"),
        ([[0, 0, 4, 4], [6, 9, 9, 12]], "A left of B"),
        ([[9, 0, 12, 4], [0, 20, 3, 22], [5, 10, 12, 13]], "A left of C left of B"),
        ([[9, 0, 12, 4], [0, 0, 0, 0], [0, 0, 3, 4]], "C above A"),
    ],
)
def test_captions_are_made_of_boxes(boxes, said):
    assert caption(np.array(boxes), "ABC"[: len(boxes)]) == said
    assert caption(np.array(boxes), "ABC"[: len(boxes)], "fr").startswith(said[0])


def check(dataset, phrases, language="en"):
    """What holds for scenes of any kind."""
    tokenizer = dataset.task.target
    assert isinstance(dataset.task, Captioning)
    assert dataset.input_range == (0.0, 255.0)
    for split, table in dataset.splits.items():
        image, targets, boxes, words = (
            table["inputs"]["image"],
            table["targets"],
            table.extras["boxes"],
            table.extras["words"],
        )
        dtypes = [table["inputs"]["target"].dtype, targets.dtype, boxes.dtype, words.dtype]
        assert (image.dtype, dtypes, table["mask"].dtype) == (np.uint8, [np.int32] * 4, bool)
        assert table.extras["pixels"].shape == image.shape[:3]
        there = boxes[..., 2] > 0
        np.testing.assert_array_equal(there, words >= 0)
        np.testing.assert_array_equal(table["inputs"]["target"][:, 1:], targets[:, :-1])
        assert (table["inputs"]["target"][:, 0] == END).all()
        assert (boxes[..., 2:] <= image.shape[1:3]).all()
        axes, leads = relation(boxes)
        assert (leads[there.sum(axis=1) > 1] >= MARGIN).all()
        assert set(axes[there.sum(axis=1) > 1]) == {0, 1}
        assert len(dataset.splits[split].extras["sentences"]) == len(targets)
        for row, (source, said) in enumerate(dataset.splits[split].extras["sentences"][:300]):
            count = table["mask"][row].sum()
            assert source == ""
            assert targets[row, :count].tolist() == [*tokenizer.encode(said), END]
            assert not targets[row, count:].any()
            assert UNKNOWN not in targets[row]
            left, names = table.extras["pixels"][row].copy(), []
            for box, word, span in zip(
                boxes[row], words[row], table.extras["phrases"][row], strict=True
            ):
                if word < 0:
                    assert not box.any()
                    assert not span.any()
                    continue
                top, side, bottom, end = box
                part = left[top:bottom, side:end]
                kinds = set(np.unique(part)) - {0}
                assert len(kinds) == 1, "one object in its box"
                for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
                    assert edge.any(), "which is tight"
                named = phrases[kinds.pop() - 1]
                assert (
                    tokenizer.vocabulary[targets[row, word]]
                    == pieces("words", named.text)[named.head]
                )
                assert tokenizer.decode(targets[row, slice(*span)]) == named.text
                names.append(named.text)
                part[:] = 0
            assert not left.any(), "nothing is outside all boxes"
            order = np.random.default_rng(row).permutation(len(names))
            assert caption(boxes[row][order], [names[index] for index in order], language) == said


# ---------------------------------------------------------------- digits


@pytest.fixture(scope="module", name="digits")
def _digits():
    return load_data("digit_scenes:600")


def test_digit_scenes_match_their_captions(digits):
    sizes = {split: table["inputs"]["image"].shape for split, table in digits.splits.items()}
    assert sizes == {
        "train": (600, 48, 48, 1),
        "validation": (1000, 48, 48, 1),
        "test": (2000, 48, 48, 1),
    }
    assert kinds_of(digits) == DIGITS
    assert digits.task.labels == ()
    check(digits, PHRASES)
    boxes = digits.splits["train"].extras["boxes"]
    assert np.ptp(np.bincount((boxes[..., 2] > 0).sum(axis=1), minlength=4)[1:]) < 100
    assert (boxes[..., 2] - boxes[..., 0]).max() <= SIDES[-1]
    said = [text for _, text in digits.splits["train"].extras["sentences"]]
    assert re.fullmatch(r"an? \w+( (above|left of) an? \w+){0,2}", max(said, key=len))
    assert not [text for text in said if re.search(r"\ba eight|\ban [^e]", text)]


def test_scene_digits_are_brighter_than_the_background(digits):
    table = digits.splits["test"]
    image, ink = table["inputs"]["image"][..., 0].astype(float), table.extras["pixels"] > 0
    behind = np.array([each[~solid].mean() for each, solid in zip(image, ink, strict=True)])
    shown = np.array([each[solid].mean() for each, solid in zip(image, ink, strict=True)])
    assert (shown - behind).min() > 25
    assert np.std(behind) > 10, "and that differs"
    assert min(each[~solid].std() for each, solid in zip(image, ink, strict=True)) > 2


def test_scenes_of_a_split_are_made_of_images_of_that_split(digits):
    sources = {split: dict(table) for split, table in load_data("digits").splits.items()}
    raw = {
        split: {image.tobytes() for image in table["inputs"]} for split, table in sources.items()
    }
    assert not raw["test"] & (raw["train"] | raw["validation"])
    for split in ("train", "validation"):
        sources[split]["inputs"] = np.full_like(sources[split]["inputs"], 16)
    other = digit_scenes(sources, 600).splits
    assert (
        (other["train"]["inputs"]["image"] != digits.splits["train"]["inputs"]["image"])
        .any(axis=(1, 2, 3))
        .all()
    )
    table = digits.splits["test"]
    for key in ("boxes", "words", "pixels"):
        np.testing.assert_array_equal(other["test"][key], table.extras[key])
    np.testing.assert_array_equal(other["test"]["targets"], table["targets"])
    np.testing.assert_array_equal(
        other["test"]["inputs"]["image"], digits.splits["test"]["inputs"]["image"]
    )


def test_digits_are_enlarged_as_pillow_does():
    table = load_data("digits").splits["validation"]
    large = enlarged(table["inputs"], table["targets"])
    for row, size in ((0, 0), (5, 2), (9, 4)):
        side = SIDES[size]
        image = Image.fromarray(table["inputs"][row, ..., 0].astype(np.float32) / 16)
        whole = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        ink = whole >= scenes.INK
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        cut = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert tuple(large.extents[row, size]) == cut.shape
        np.testing.assert_allclose(
            large.shade[row, size, : cut.shape[0], : cut.shape[1]], cut, atol=1e-5
        )
        assert large.shade[row, size].sum() == pytest.approx(cut.sum(), rel=1e-4)


def test_scenes_are_deterministic_and_nested_by_count(digits):
    few = load_data("digit_scenes:20")
    for split, table in few.splits.items():
        count = len(table["mask"])
        assert (
            few.splits[split].extras["sentences"]
            == digits.splits[split].extras["sentences"][:count]
        )
        more = digits.splits[split]
        for key in ("targets", "mask"):
            np.testing.assert_array_equal(table[key], more[key][:count])
        for key in ("boxes", "phrases", "words", "pixels"):
            np.testing.assert_array_equal(table.extras[key], more.extras[key][:count])
        for key, array in table["inputs"].items():
            np.testing.assert_array_equal(array, digits.splits[split]["inputs"][key][:count])
    assert to_dict(few.task) == to_dict(digits.task)
    assert few.fingerprint == "d649ee5d6e3839b3", (
        "on every machine, so that runs can be resumed and evaluated"
    )


def test_sizes_are_the_documented_ones_and_names_are_known(monkeypatch):
    counts = re.search(
        r"COUNT \(([\d,]+)\) train, ([\d,]+) validation and ([\d,]+) test", scenes.__doc__ or ""
    )
    assert counts
    assert [int(count.replace(",", "")) for count in counts.groups()] == [
        scenes.SCENES,
        *HELD_OUT.values(),
    ]
    monkeypatch.setattr(scenes, "SCENES", 7)
    assert len(load_data("digit_scenes").splits["train"]["mask"]) == 7
    for bad in ("digit_scenes:", "digit_scenes:0", "digit_scenes:many", "digit_scenes:9999999"):
        with pytest.raises(
            DataError, match=f"data '{bad}': .* scenes, allowed: a number from 1 to 999999"
        ):
            load_data(bad)
    with pytest.raises(DataError, match=r"digit_scenes\[:COUNT\], stamps:PATH"):
        load_data("")
    with pytest.raises(DataError, match="did you mean 'digit_scenes'"):
        load_data("digit-scenes")


# ---------------------------------------------------------------- stamps

KINDS = {
    "A frog.": "Une grenouille.",
    "A red car.": "Une voiture rouge.",
    "A bunch of grapes.": "Une grappe de raisin.",
    "An owl (a bird).": "Un hibou.",
    "The Sun.": "Le soleil.",
    "A knight’s helmet.": "Un heaume.",
}
ENGLISH = ("a bunch of grapes", "a frog", "a knight’s helmet", "a red car", "an owl", "the Sun")
COUNTS = {"train": 120, "validation": 20, "test": 30, "one-shot": 40}
LEFT = {
    "Eat your broccoli!": "Mange !",
    "The letter o.": "La lettre o.",
    "The letter O.": "La lettre O.",
}


def colour(index):
    return (25 * index, 255 - 25 * index, 7 * index + 3)


def cutout(file, index):
    """An opaque ellipse of a unique colour on a transparent background."""
    rows, columns = np.mgrid[-1:1:40j, -1 : 1 : complex(24 + 4 * index)]
    image = np.zeros((*rows.shape, 4), np.uint8)
    image[rows**2 + columns**2 < 0.8] = (*colour(index), 255)
    Image.fromarray(image).save(file)


def folder(path, *, twice=("A frog.",), more=()):
    """Stamps: one of each kind, then a second one of some."""
    (path / "images").mkdir()
    lines = ["image\tcategory\tcaption_en\tcaption_fr"]
    captions = {**KINDS, **LEFT}
    for index, english in enumerate([*captions, *twice]):
        cutout(path / "images" / f"{index}.png", index)
        lines.append(f"{index}.png\tthings\t{english}\t{captions[english]}")
    (path / "captions.tsv").write_text("".join(f"{line}\r\n" for line in [*lines, *more]))
    return f"stamps:{path}"


@pytest.fixture(name="few")
def _few(monkeypatch):
    monkeypatch.setattr(stamps, "SCENES", COUNTS)


def shown(dataset, split):
    """The colours at the centres of each scene's boxes."""
    table = dataset.splits[split]
    found = []
    for image, boxes in zip(table["inputs"]["image"], table.extras["boxes"], strict=True):
        middles = [
            ((top + bottom) // 2, (left + right) // 2)
            for top, left, bottom, right in boxes
            if bottom
        ]
        found.append([tuple(image[middle].tolist()) for middle in middles])
    return found


@pytest.mark.usefixtures("few")
def test_more_scenes_train_and_those_of_other_splits_stay(tmp_path):
    name = folder(tmp_path)
    usual, more, french = load_data(name), load_data(f"{name}@77"), load_data(f"{name}@fr,77")
    pixels = load_data(f"stamp_pixels{name.removeprefix('stamps')}@77")
    for split in COUNTS:
        table = more.splits[split]["inputs"]["image"]
        assert len(table) == (77 if split == "train" else COUNTS[split])
        assert np.array_equal(table, pixels.splits[split]["inputs"])
        if split != "train":
            assert np.array_equal(table, usual.splits[split]["inputs"]["image"])
    assert len(french.splits["train"].extras["sentences"]) == 77
    assert kinds_of(french) == kinds_of(load_data(f"{name}@fr"))


@pytest.mark.usefixtures("few")
def test_stamp_scenes_match_their_captions(tmp_path):
    name = folder(tmp_path)
    english, french = load_data(name), load_data(f"{name}@fr")
    assert kinds_of(english) == ENGLISH
    assert {split: table.extras["pixels"].shape for split, table in english.splits.items()} == {
        split: (count, 64, 64) for split, count in COUNTS.items()
    }
    for dataset, language in ((english, "en"), (french, "fr")):
        phrases = [phrase(kind, language) for kind in kinds_of(dataset)]
        check(dataset, phrases, language)
        assert dataset.splits["train"].extras["pixels"].dtype == np.uint8
        together = "\n".join(text for _, text in dataset.splits["train"].extras["sentences"])
        assert all(each in together for each in (*RELATIONS[language], *kinds_of(dataset)))
    assert "6 kinds" in english.notes[0]
    assert (
        "left out: 2 pictures, captions differ in capitals only, such as 'The letter o.'"
        in english.notes
    )
    assert any(
        re.match(r"left out: 1 pictures, .*, such as 'Eat your broccoli!'", note)
        for note in english.notes
    )
    assert load_data(name).fingerprint == english.fingerprint
    assert load_data(f"{name}@en").fingerprint == english.fingerprint


@pytest.mark.usefixtures("few")
def test_kinds_that_are_together_in_tests_are_never_together_in_training(tmp_path):
    dataset = load_data(folder(tmp_path))
    pairs = {}
    for split, table in dataset.splits.items():
        kinds = [frozenset(np.unique(pixels)) - {0} for pixels in table.extras["pixels"]]
        pairs[split] = {each for each in kinds if len(each) == 2}
        if split == "train":
            assert frozenset().union(*kinds) == set(range(1, 7)), "every kind is seen"
            assert {len(each) for each in kinds} == {1, 2}
        if split == "test":
            assert {len(each) for each in kinds} == {2}
    assert pairs["test"]
    assert not pairs["test"] & (pairs["train"] | pairs["validation"] | pairs["one-shot"])


@pytest.mark.usefixtures("few")
def test_one_shot_images_occur_in_one_shot_scenes_only(tmp_path):
    dataset = load_data(folder(tmp_path))
    held_out = colour(len(KINDS) + len(LEFT))
    for split in dataset.splits:
        with_it = [held_out in colours for colours in shown(dataset, split)]
        assert all(with_it) if split == "one-shot" else not any(with_it)
    assert any(colour(0) in colours for colours in shown(dataset, "train")), (
        "the other picture of that kind is"
    )
    assert all("a frog" in text for _, text in dataset.splits["one-shot"].extras["sentences"])
    (tmp_path / "none").mkdir()
    without = load_data(folder(tmp_path / "none", twice=()))
    assert list(without.splits) == ["train", "validation", "test"]


@pytest.mark.usefixtures("few")
def test_more_kinds_than_a_byte_holds(tmp_path):
    (tmp_path / "images").mkdir()
    letters = [first + second for first in "bcdfghjklmnpqrst" for second in "aeiouvwxyzbcdfgh"]
    for index in range(256):
        image = np.full((8, 9, 4), 255, np.uint8)
        image[..., 0] = index
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    rows = "".join(f"{index}.png\ta {word}\n" for index, word in enumerate(letters))
    (tmp_path / "captions.tsv").write_text("image\tcaption_en\n" + rows)
    dataset = load_data(f"stamps:{tmp_path}")
    assert dataset.splits["train"].extras["pixels"].dtype == np.uint16
    assert dataset.splits["train"].extras["pixels"].max() <= 256 == len(kinds_of(dataset))


@pytest.mark.parametrize(
    ("text", "language", "said", "head"),
    [
        ("A frog.", "en", "a frog", "▁frog"),
        ("A bunch of grapes.", "en", "a bunch of grapes", "▁bunch"),
        ("A peacock (a male peafowl).", "en", "a peacock", "▁peacock"),
        ("A Jack-o’-lantern.", "en", "a Jack-o’-lantern", "lantern"),
        ("Une clé à molette.", "fr", "une clé à molette", "▁clé"),
        ("Un petit  lapin.", "fr", "un petit lapin", "▁lapin"),
        ("L'entrée de la cave.", "fr", "l'entrée de la cave", "entrée"),
        ("Une toute petite cruche.", "fr", "une toute petite cruche", "▁cruche"),
        ("Un petit.", "fr", "un petit", "▁petit"),
    ],
)
def test_captions_become_phrases_with_their_noun(text, language, said, head):
    found = phrase(text, language)
    assert found
    assert (found.text, pieces("words", found.text)[found.head]) == (said, head)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Boom!!!",
        "Penguins are winning.",
        "A very happy big dog.",
        "A “Fuji” apple.",
        "A dog! A cat.",
    ],
)
def test_labels_without_a_short_noun_are_excluded(text):
    assert phrase(text, "en") is None
    assert phrase(text, "fr") is None


def write(file, raw):
    return lambda path: (path / file).write_bytes(raw)


FAULTS = {
    r"captions.tsv: no such file": lambda path: (path / "captions.tsv").unlink(),
    r"captions.tsv:2: not UTF-8 text": write(
        "captions.tsv", b"image\tcaption_en\n1.png\tcaf\xe9\n"
    ),
    r"captions.tsv: UTF-16; ": write(
        "captions.tsv", "image\tcaption_en\n1.png\tA frog.\n".encode("utf-16")
    ),
    r"captions.tsv:1: columns image, text; missing: caption_en": write(
        "captions.tsv", b"image\ttext\n"
    ),
    r"captions.tsv:3: 1 columns, expected the 2 ": write(
        "captions.tsv", b"image\tcaption_en\n0.png\tA frog.\n1.png\n"
    ),
    r"captions.tsv:2: image '../0.png', expected the name of": write(
        "captions.tsv", b"image\tcaption_en\n../0.png\tA frog.\n"
    ),
    r"captions.tsv:3: image 0.png again, as in line 2": write(
        "captions.tsv", b"image\tcaption_en\n0.png\tA\n0.png\tB\n"
    ),
    r"captions.tsv:2: .*9.pn: no such file": write(
        "captions.tsv", b"image\tcaption_en\n9.pn\tA frog.\n"
    ),
    r"captions.tsv:3: .*images/1.png: ": write("images/1.png", b"\x89PNG\r\n\x1a\n and no more"),
    r"captions.tsv:2: .*0.png: no opaque pixels": lambda path: Image.new("RGBA", (9, 9)).save(
        path / "images" / "0.png"
    ),
    r"captions.tsv: 1 usable kinds of pictures, exp": write(
        "captions.tsv", b"image\tcaption_en\n0.png\tA frog.\n"
    ),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_stamps_are_named(tmp_path, fault):
    name = folder(tmp_path)
    FAULTS[fault](tmp_path)
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + "/" + fault):
        load_data(name)


@pytest.mark.usefixtures("few")
def test_faults_of_names_are_explained(tmp_path):
    name = folder(tmp_path, more=["none.png\tthings\tEat!\tMange !"])
    assert len(kinds_of(load_data(name))) == 6, "a picture that is left out is not opened"
    (tmp_path / "images" / "stray.png").write_bytes(b"not opened either")
    (tmp_path / "captions.tsv").rename(tmp_path / "Captions.TSV")
    assert load_data(name).notes[-1] == f"not read: {tmp_path / 'images' / 'stray.png'}"
    with pytest.raises(DataError, match=r"data\.language='de', allowed: en, fr"):
        load_data(f"{name}@de")
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere"):
        load_data("stamps:nowhere@fr")
    for bad in ("0", "fr,many", "fr,"):
        with pytest.raises(
            DataError, match=rf"{bad}': .* scenes, allowed: a number from 1 to 999999"
        ):
            load_data(f"{name}@{bad}")
    with pytest.raises(DataError, match="'fr' scenes, allowed: a number"):
        load_data(f"stamp_pixels{name.removeprefix('stamps')}@fr")
    with pytest.raises(DataError, match="a path must follow the colon"):
        load_data("stamps:")


@pytest.mark.usefixtures("few")
@pytest.mark.skipif(not (ROOT / "stamps").is_dir(), reason="needs ZOO_DATA_DIR with stamps")
@pytest.mark.parametrize(("language", "kinds"), [("en", 361), ("fr", 353)])
def test_real_stamps_are_read(language, kinds):
    dataset = load_data(f"stamps:stamps@{language}", ROOT)
    assert len(kinds_of(dataset, ROOT)) == kinds
    for split, table in dataset.splits.items():
        assert len(table["mask"]) == COUNTS[split]
        assert (table.extras["pixels"] > 0).any(axis=(1, 2)).all()
        assert (table["mask"].sum(axis=1) > 2).all()
    counted = [dataset.notes[0], *(note for note in dataset.notes if note.startswith("left out: "))]
    assert sum(int(re.findall(r"\d+", note)[0]) for note in counted) == 785
