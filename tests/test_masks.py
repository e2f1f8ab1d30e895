"""Images with labelled pixels: of scenes, and from folders of masks, whose faults are named."""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.data import kinds_of
from train import stamps
from train.augment import Augment, deform, deform_batch
from train.data import DataError, load_data, scenes
from train.data.masks import VOC_CLASSES, VOID
from train.engine.step import example_keys
from train.formats import read_mask
from train.tasks import Segmentation

SHAPE = (12, 16, 3)


def write(
    path: pathlib.Path,
    count=12,
    *,
    places=("images", "masks"),
    classes=("nothing", "left", "right"),
):
    """Images of different sizes with one class per half (red, green); blue is unlabelled."""
    for place in places:
        (path / place).mkdir(parents=True)
    for index in range(count):
        height, width = 12 + 3 * index, 16 + 4 * index
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 4], mask[:, width // 2 :] = 1, 2
        mask[: height // 4] = VOID
        image = np.zeros((height, width, 3), np.uint8)
        image[mask == 1], image[mask == 2], image[mask == VOID] = (
            (90, 0, 0),
            (0, 200, 0),
            (0, 0, 250),
        )
        Image.fromarray(image).save(path / places[0] / f"{index}.{'png' if index % 2 else 'bmp'}")
        picture = Image.fromarray(mask, "L" if index % 3 else "P")
        if picture.mode == "P":
            picture.putpalette([7, 200, 0] * 256)  # colours do not matter
        picture.save(path / places[1] / f"{index}.png")
    if classes:
        (path / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return f"masks:{path}"


def lists(path: pathlib.Path, **splits):
    folder = path / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def check(dataset):
    """Labels match the colours, except where interpolation mixed them."""
    for table in dataset.splits.values():
        image, targets, mask = table["inputs"], table["targets"], table["mask"]
        assert image.shape == (len(targets), *SHAPE)
        assert targets.shape == mask.shape == image.shape[:-1]
        assert (image.dtype, targets.dtype, mask.dtype) == (np.uint8, np.uint8, bool)
        for colour, label, there in (
            ((90, 0, 0), 1, True),
            ((0, 200, 0), 2, True),
            ((0, 0, 250), 0, False),
        ):
            where = (image == colour).all(axis=-1)
            assert where.any()
            assert (targets[where] == label).all()
            assert (mask[where] == there).all()


def test_images_and_masks_of_any_size_are_read(tmp_path):
    name = write(tmp_path)
    dataset = load_data(name, image_shape=SHAPE)
    assert {split: len(table["mask"]) for split, table in dataset.splits.items()} == {
        "train": 10,
        "validation": 1,
        "test": 1,
    }
    assert dataset.task.labels == ("nothing", "left", "right")
    check(dataset)
    (tmp_path / "classes.txt").unlink()
    unnamed = load_data(name, image_shape=SHAPE)
    assert unnamed.task.labels == ("0", "1", "2")
    assert unnamed.fingerprint == dataset.fingerprint


def test_pascal_vocs_folders_are_read(tmp_path):
    name = write(tmp_path, places=("JPEGImages", "SegmentationClass"), classes=())
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "without_a_mask.png")
    lists(tmp_path, train=range(10), val=(10, 11))
    dataset = load_data(name, image_shape=SHAPE)
    assert {split: len(table["mask"]) for split, table in dataset.splits.items()} == {
        "train": 9,
        "validation": 1,
        "test": 2,
    }
    assert dataset.task.labels == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[15]) == (21, "person")
    check(dataset)
    lists(tmp_path, train=range(9), val=(9,), test=(10, 11))
    assert [len(table["mask"]) for table in load_data(name, image_shape=SHAPE).splits.values()] == [
        9,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            lambda path: (path / "masks" / "7.png").unlink(),
            r"masks/7.png: no such file, the mask of 7.png",
        ),
        (
            lambda path: (path / "images" / "7.png").unlink(),
            r"masks/7.png: a mask without an image in images/",
        ),
        (
            lambda path: Image.new("L", (44, 34)).save(path / "masks" / "7.png"),
            r"masks/7.png: 44 x 34 pixels, its image 7.png has 44 x 33",
        ),
        (
            lambda path: Image.new("L", (44, 33), 3).save(path / "masks" / "7.png"),
            r"masks/7.png: value 3, allowed: 0 to 2, the classes, and 255, void",
        ),
        (
            lambda path: Image.new("RGB", (44, 33)).save(path / "masks" / "7.png"),
            r"masks/7.png: PNG of mode RGB, expected a PNG",
        ),
        (
            lambda path: Image.new("L", (44, 33)).save(path / "masks" / "7.png", format="JPEG"),
            r"masks/7.png: JPEG of mode L, expected a PNG",
        ),
        (
            lambda path: [
                (path / "classes.txt").unlink(),
                Image.new("L", (44, 33), 200).save(path / "masks" / "7.png"),
            ],
            r"masks/7.png: value 200, while no mask has 3; allowed without .*classes.txt: 0, 1, "
            r"..., without gaps, and 255",
        ),
        (
            lambda path: (path / "masks" / "7.png").write_bytes(b"\x89PNG"),
            r"masks/7.png: not an image, or damaged",
        ),
        (
            lambda path: (path / "images" / "7.png").write_bytes(b"no"),
            r"images/7.png: not an image, or damaged",
        ),
        (
            lambda path: Image.new("L", (3, 3)).save(path / "images" / "7.bmp"),
            r"images/7.png: the same name as 7.bmp",
        ),
        (
            lambda path: (path / "masks").rename(path / "labels"),
            r"expected folders images/ and masks/, or JPEGImages/ and Segm",
        ),
        (
            lambda path: (path / "classes.txt").write_text("a\na\n"),
            r"classes.txt: 2 names, expected 2 to 255 different ones",
        ),
        (lambda path: (path / "classes.txt").write_text("\n"), r"classes.txt: empty"),
        (
            lambda path: (path / "classes.txt").write_bytes(b"\xff"),
            r"classes.txt:1: not UTF-8 text",
        ),
        (
            lambda path: (path / "classes.txt").write_text("a\nb\nc\n", "utf-16"),
            r"classes.txt: UTF-16; expected text in UTF-8",
        ),
        (
            lambda path: lists(path, train=range(11), val=("99",)),
            r"no image '99' in images/, which a list names",
        ),
        (
            lambda path: lists(path, train=("../1",), val=("2",)),
            r"train.txt: '../1', expected the name of an image",
        ),
        (lambda path: lists(path, train=range(11), val=(3,)), r"Segmentation: '3' is listed twice"),
        (
            lambda path: lists(path, train=range(11)),
            r"Segmentation: train.txt, expected train.txt and val.txt",
        ),
        (
            lambda path: lists(path, trainval=range(11)),
            r"Segmentation: trainval.txt, expected train.txt and val.txt",
        ),
        (
            lambda path: lists(path, train=range(9), val=(9,), valid=(10,)),
            r"Segmentation: val and valid are both the validation",
        ),
    ],
)
def test_every_fault_is_one_error_that_names_the_file(tmp_path, fault, said):
    name = write(tmp_path)
    fault(tmp_path)
    with pytest.raises(DataError, match=said) as error:
        load_data(name, image_shape=SHAPE)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_values_of_few_bits_are_classes_as_they_are(tmp_path, bits):
    """Written by hand, because Pillow writes only 8 bits of grey."""

    def chunk(kind, data):
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    values = np.arange(8).reshape(1, 8) % 2**bits
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1]) & 1).tobytes()
    header = (8).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    file = tmp_path / "mask.png"
    chunks = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    np.testing.assert_array_equal(read_mask(file), values)


def test_endings_of_any_case_are_read_and_other_files_named(tmp_path):
    plain = load_data(write(tmp_path / "plain"), image_shape=SHAPE)
    name, root = write(tmp_path / "mixed"), tmp_path / "mixed"
    (root / "classes.txt").rename(root / "Classes.TXT")
    for file in (root / "masks").iterdir():
        file.rename(file.with_suffix(".PNG"))
    for junk in ("images/Thumbs.db", "masks/.DS_Store", "masks/notes.txt"):
        (root / junk).write_text("x")
    mixed = load_data(name, image_shape=SHAPE)
    assert (mixed.fingerprint, mixed.task.labels) == (plain.fingerprint, plain.task.labels)
    assert mixed.notes == (f"not read: {root}/masks/notes.txt",)
    lists(root, train=range(9), dev=(9,), testing=(10, 11))
    assert [len(table["mask"]) for table in load_data(name, image_shape=SHAPE).splits.values()] == [
        9,
        1,
        2,
    ]


@pytest.mark.parametrize("both", [True, False])
def test_photographs_and_masks_are_turned_by_exif_orientation(tmp_path, both):
    plain = load_data(write(tmp_path / "plain"), image_shape=SHAPE)
    name = write(tmp_path / "turned")
    exif = Image.Exif()
    exif[0x0112] = 6
    for place in ("images", "masks") if both else ("images",):
        for file in (tmp_path / "turned" / place).iterdir():
            with Image.open(file) as image:
                image.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    turned = load_data(name, image_shape=SHAPE)
    check(turned)
    assert turned.fingerprint == plain.fingerprint


def test_too_few_images_and_wrong_shapes_are_reported(tmp_path):
    name = write(tmp_path, 4)
    with pytest.raises(DataError, match="4 examples, expected at least 10"):
        load_data(name, image_shape=SHAPE)
    with pytest.raises(DataError, match=r"image_shape=\(4, 4, 2\)"):
        load_data(name, image_shape=(4, 4, 2))


def test_pixels_of_digit_scenes_are_those_of_the_scenes():
    pixels, shown = load_data("digit_pixels:30"), load_data("digit_scenes:30")
    assert pixels.task.labels == ("background", *scenes.DIGITS)
    assert isinstance(pixels.task, Segmentation)
    assert pixels.input_range == (0.0, 255.0)
    for split, table in pixels.splits.items():
        np.testing.assert_array_equal(table["inputs"], shown.splits[split]["inputs"]["image"])
        np.testing.assert_array_equal(table["targets"], shown.splits[split].extras["pixels"])
        assert table["mask"].shape == table["targets"].shape
        assert table["mask"].all()
    with pytest.raises(DataError, match="data 'digit_pixels:0'"):
        load_data("digit_pixels:0")


def test_pixels_of_stamps_have_their_categories(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "SCENES", {"train": 20, "validation": 4, "test": 6, "one-shot": 2})
    (tmp_path / "images").mkdir()
    kinds = {
        "A frog.": "animals",
        "An owl.": "animals",
        "A car.": "vehicles",
        "A train.": "vehicles",
        "A cup.": "household",
    }
    lines = ["image\tcategory\tcaption_en"]
    for index, (text, category) in enumerate(kinds.items()):
        image = np.full((40, 30 + 2 * index, 4), 255, np.uint8)
        image[..., index % 3] = 40 * index
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        lines.append(f"{index}.png\t{category}\t{text}")
    (tmp_path / "captions.tsv").write_text("\n".join(lines))
    pixels, shown = load_data(f"stamp_pixels:{tmp_path}"), load_data(f"stamps:{tmp_path}")
    assert pixels.task.labels == ("background", "animals", "household", "vehicles")
    of_kind = {
        kind: pixels.task.labels.index(kinds[kind[0].upper() + kind[1:] + "."])
        for kind in kinds_of(shown)
    }
    for split, table in pixels.splits.items():
        kinds_of_pixels = shown.splits[split].extras["pixels"]
        np.testing.assert_array_equal(table["targets"] == 0, kinds_of_pixels == 0)
        for number, kind in enumerate(kinds_of(shown), 1):
            assert set(table["targets"][kinds_of_pixels == number]) <= {of_kind[kind]}
    (tmp_path / "captions.tsv").write_text("\n".join([*lines[:2], "1.png\t\tAn owl.", *lines[3:]]))
    with pytest.raises(DataError, match=r"captions.tsv:3: no category"):
        load_data(f"stamp_pixels:{tmp_path}")


def test_labels_are_deformed_like_their_images():
    """On an image of its own labels; random draws do not depend on the presence of labels."""
    targets = np.zeros((5, 20, 24), np.uint8)
    targets[:, 5:14, 8:20] = 1
    mask = np.ones(targets.shape, bool)
    mask[:, :, :8] = False
    image = jnp.asarray(np.stack([targets, mask], axis=-1), jnp.float32)
    batch = {"inputs": image, "targets": targets, "mask": mask}
    augment, keys = (
        Augment(rotate=20, scale=0.2, shift=2, flip_horizontal=True, elastic=1),
        example_keys(jax.random.key(0), jnp.int32(0), 5),
    )
    found = jax.jit(deform_batch, static_argnums=0)(augment, batch, keys)
    np.testing.assert_allclose(found["inputs"], deform(augment, image, keys), atol=1e-5)
    for name, channel in (("targets", 0), ("mask", 1)):
        values = np.asarray(found["inputs"][..., channel])
        sure = np.abs(values - 0.5) > 0.49
        assert sure.mean() > 0.7
        np.testing.assert_array_equal(
            found[name][sure], (values > 0.5)[sure].astype(found[name].dtype)
        )
        assert found[name].dtype == batch[name].dtype
        assert (found[name] != batch[name]).any()
    assert deform_batch(Augment(), batch, keys) is batch
    only = {"inputs": image, "targets": np.arange(5), "mask": np.ones(5, bool)}
    np.testing.assert_array_equal(deform_batch(augment, only, keys)["targets"], only["targets"])
