r"""Image captioning: images with reference captions, in the JSON formats of Karpathy and COCO.

    captions:FILE.json
        Karpathy's JSON of Flickr8k, Flickr30k and COCO (Karpathy and Fei-Fei 2015): {"images":
        [{"filename", "split", "sentences": [{"tokens" or "raw"}], "filepath"?, "imgid"?}]}.  The
        split "restval" is used for training.
    captions:captions_{split}2014.json
        COCO's own JSON (Chen et al. 2015): {"images": [{"id", "file_name"}], "annotations": [{"id",
        "image_id", "caption"}]}; for "{split}" see ``train.data.pairs``.

The format is detected from the content; files may be gzipped.  Missing splits are drawn at random,
image by image, with a fixed seed: without a test split, half of the validation images become the
test split, because COCO's test captions are not public; without a validation split, it is a tenth
of the training images; a single COCO file, or a training split alone, is split 80/10/10.

Images are searched for in the JSON's folder, in images/ there, and in the same two places in the
parent folder; in each, first within the folder named by "filepath" (for COCO, by the end of the
JSON's name after the last "_", such as val2014), then without it.

Captions are lower case, without punctuation: the "tokens" of Karpathy's JSON unchanged; captions
without tokens by his rule (lower case, no punctuation, split at white space).  So
generated captions are compared with references of the same form.  ``train.tokens`` is fitted to the
training captions.

A table has inputs: {"image": uint8 [n, height, width, channels], "target": int32 [n, time]}, and
targets and mask [n, time], as in ``train.data.scenes``.  In training and validation, a row is an
image with one of its captions; the test split has one row per image, whose target is the first
caption.  Images are decoded once, see ``train.formats.map_images``; tables hold only their indices,
so an image with five captions takes no more memory than one.

These are an error, or are skipped and counted with ``on_bad=skip``: captions that are empty, or
longer than ``max_length`` (they remain references); annotations with a duplicate id or for an
unknown image; images with a duplicate id, listed twice, without a caption, missing or unreadable.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from train import tokens as tokenizers
from train.batches import MEASURED, not_streamed
from train.data.base import Finder, Form, ImageShape, Sentences, named, path_after
from train.data.pairs import NAMES, MissingSplitError, of_split
from train.dataset import SPLIT_OF, Bad, Dataset, Table
from train.engine.step import root_key
from train.formats import DataError, Mapped, check_image_shape, map_images, read_text, reading
from train.places import NO_CACHE, ProgressBar, cache
from train.tasks import Captioning
from train.tokens import UNKNOWN, Tokenizer, teacher_forcing

KARPATHY = {**SPLIT_OF, "restval": "train"}
"""Split by its name in Karpathy's files."""
SEED = 2015
EXPECTED = (
    'Karpathy\'s {"images": [{"filename", "split", "sentences"}, ...]} or '
    'COCO\'s {"images": [{"id", "file_name"}, ...], '
    '"annotations": [{"id", "image_id", "caption"}, ...]}'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sentences):
    """Images with captions."""

    kind: ClassVar[str] = "captions"
    identity: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""
    """The JSON file in Karpathy's or COCO's format."""
    image_shape: ImageShape = (28, 28, 1)
    """Height, width and channels (1 grey, 3 or 4) to resize images to."""

    def __str__(self) -> str:
        return f"captions:{self.path}"

    def check(self, model: Any, preprocess: str) -> None:
        """Raises ValueError for a wrong shape or scaling, before the images are decoded."""
        super().check(model, preprocess)
        if preprocess in MEASURED:
            raise not_streamed(preprocess)
        module = sys.modules[type(model).__module__]
        batch = jax.eval_shape(lambda: module.example_batch(model, root_key(0), 1))
        inputs = batch["inputs"]
        known = isinstance(inputs, dict) and "image" in inputs
        expected = inputs["image"].shape[1:] if known else self.image_shape
        if self.image_shape != expected:
            allowed = f"allowed for this {type(model).__module__}: {expected}"
            raise ValueError(f"data {self}: image_shape={self.image_shape}, {allowed}")


FORMS = {
    "captions": Form(
        "captions:PATH", "images with captions", path_after(lambda path: Config(path=path))
    )
}


def load(cfg: Config, find: Finder) -> Dataset:
    """Images, decoded once into a cache file, and their captions, see the module."""

    def decode(files: Sequence[pathlib.Path]) -> Mapped:
        folder = cache("captions")
        if folder is None:
            raise DataError(f"{named(cfg)}: images are decoded into a file: {NO_CACHE}")
        with contextlib.closing(ProgressBar("decoding")) as bar:
            size = math.prod(cfg.image_shape)

            def decoded(count: int) -> None:
                bar.total = size * len(files)
                bar.update(size * count)

            return map_images(files, cfg.image_shape, folder, decoded)

    trained = find.task_of(Captioning, cfg)
    tables, task, notes = read(cfg, find, decode, trained.target if trained else None)
    return Dataset(str(cfg), tables, task, (0.0, 255.0), notes)


class Listed(NamedTuple):
    """An image in a JSON file.  folders: where to search for it.  captions: not empty."""

    name: str
    folders: tuple[pathlib.Path, ...]
    captions: list[str]


Locate = Callable[[str], pathlib.Path]


def read(
    cfg: Config,
    locate: Locate,
    decode: Callable[[Sequence[pathlib.Path]], Mapped],
    tokenizer: Tokenizer | None = None,
) -> tuple[dict[str, Table], Captioning, tuple[str, ...]]:
    """Reads the images and captions of a JSON; returns tables, their task and notes for the user.

    Extras of each table: "sentences", (("", caption), ...), and, except in training, "references":
    all captions of each row's image.
    locate: (path as given) -> its location.  decode: ``map_images`` of these files.
    tokenizer: for the captions; then a file without splits is the test split as a whole.  By
        default, it is fitted to the training captions.
    Raises DataError naming the file and its fault.
    """
    name = named(cfg)
    check_image_shape(cfg.image_shape)
    bad = Bad()
    listed = _listed(name, cfg.path, locate, bad, ("train",) if tokenizer is None else ())
    if tokenizer is None:
        divided = _divided(listed)
        listed = {split: divided.get(split, []) for split in NAMES}
    elif "all" in listed:
        listed = {"test": listed["all"]}
    bad.check(name, cfg)
    located = _found(listed, bad)
    bad.check(name, cfg)
    _require_some(name, located, bad)
    files = [file for images in located.values() for _, file in images]
    images = decode(files)
    readable = dict(zip(files, enumerate(images.readable().tolist()), strict=True))
    for file, (_, fine) in readable.items():
        if not fine:
            bad.add("images that cannot be read", str(file))
    bad.check(name, cfg)
    kept = {
        split: [(readable[file][0], image) for image, file in images if readable[file][1]]
        for split, images in located.items()
    }
    _require_some(name, kept, bad)
    if tokenizer is None:
        training = [caption for _, image in kept["train"] for caption in image.captions]
        tokenizer = tokenizers.fit(cfg.tokens, training, size=cfg.subwords, min_count=cfg.min_count)
    rows = {split: _rows(split, images, tokenizer, cfg, bad) for split, images in kept.items()}
    bad.check(name, cfg)
    _require_some(name, rows, bad)
    time = 1 + max(len(row.tokens) for split_rows in rows.values() for row in split_rows)
    tables = {}
    for split, split_rows in rows.items():
        decoder_inputs, targets, mask = teacher_forcing([row.tokens for row in split_rows], time)
        image = images.select(np.array([row.image for row in split_rows]))
        columns = {
            "inputs": {"image": image, "target": decoder_inputs},
            "targets": targets,
            "mask": mask,
        }
        extras: dict[str, Any] = {"sentences": tuple(("", row.text) for row in split_rows)}
        if split != "train":
            extras["references"] = tuple(row.references for row in split_rows)
        tables[split] = Table(columns, extras=extras)
    notes = _notes(rows, tokenizer, cfg, time, bad)
    return tables, Captioning(tokenizer, cfg.max_length), notes


class _Row(NamedTuple):
    image: int
    text: str
    tokens: list[int]
    references: tuple[str, ...]


def _rows(
    split: str, images: Sequence[tuple[int, Listed]], tokenizer: Tokenizer, cfg: Config, bad: Bad
) -> list[_Row]:
    rows = []
    for image, listed in images:
        references, first = tuple(listed.captions), len(rows)
        for text in references:
            tokens = tokenizer.encode(text)
            if len(tokens) > cfg.max_length:
                bad.add(
                    f"captions of more than max_length={cfg.max_length} tokens",
                    f"{listed.name} ({text[:30]} ...)",
                )
            else:
                rows.append(_Row(image, text, tokens, references))
        if split == "test":
            del rows[first + 1 :]
    return rows


def _require_some(name: str, splits: dict[str, Any], bad: Bad) -> None:
    without = ", ".join(split for split, images in splits.items() if not images)
    if without:
        left = "".join(f"; {note}" for note in _left_out(bad))
        raise DataError(f"{name}: no image with a caption in {without}{left}")


def _left_out(bad: Bad) -> list[str]:
    return [
        f"left out: {len(places):,} {what}, such as {places[0]}"
        for what, places in bad.places.items()
    ]


def _notes(
    rows: dict[str, list[_Row]], tokenizer: Tokenizer, cfg: Config, time: int, bad: Bad
) -> tuple[str, ...]:
    images = (
        f"{len({row.image for row in split_rows}):,} {split}" for split, split_rows in rows.items()
    )
    if "train" not in rows:
        return (*_left_out(bad), f"images: {', '.join(images)}")
    counts = {
        split: sum(len(row.tokens) + 1 for row in split_rows) for split, split_rows in rows.items()
    }
    held_out = [
        token for split in rows if split != "train" for row in rows[split] for token in row.tokens
    ]
    unknown = 100 * held_out.count(UNKNOWN) / len(held_out)
    padding = 100 * (1 - counts["train"] / (time * len(rows["train"])))
    return (
        *_left_out(bad),
        f"images: {', '.join(images)}; {len(rows['train']):,} captions in training",
        f"captions: {len(tokenizer.vocabulary):,} {cfg.tokens}, "
        f"{counts['train']:,} tokens in training, "
        f"{unknown:.2f} % of the held-out ones unknown",
        f"filled up to {time} tokens: {padding:.1f} % of the places are padding",
    )


# ---------------------------------------------------------------- files


def plain(caption: str) -> str:
    """Lower case, no punctuation or symbols, single spaces: Karpathy's rule for all of Unicode."""
    return " ".join(caption.lower().translate(_signs()).split())


@functools.cache
def _signs() -> dict[int, None]:
    return {
        code: None
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] in "PS"
    }


def _listed(
    name: str, path: str, locate: Locate, bad: Bad, needed: Sequence[str]
) -> dict[str, list[Listed]]:
    """Images of each split, or of "all".  Raises DataError if a split in ``needed`` is missing."""
    if "{split}" not in path:
        file = locate(path)
        content = _content(file)
        return (
            {"all": _coco(file, content, bad)}
            if "annotations" in content
            else _karpathy(file, content, bad)
        )
    splits = {}
    for split, words in NAMES.items():
        try:
            file = of_split(path, words, locate)
        except MissingSplitError:
            if split in needed:
                raise
            continue
        content = _content(file)
        if "annotations" not in content:
            raise DataError(
                f"{name}: {file} has all splits, expected one file, and no {{split}} in its name"
            )
        splits[split] = _coco(file, content, bad)
    return splits


def _content(file: pathlib.Path) -> dict[str, Any]:
    with reading(file):
        content = json.loads(read_text(file))
        images = content.get("images") if isinstance(content, dict) else None
        coco = isinstance(images, list) and isinstance(content.get("annotations"), list)
        karpathy = isinstance(images, list) and any(
            isinstance(entry, dict) and "sentences" in entry for entry in images
        )
        if not (coco or karpathy):
            raise DataError(f"{file}: expected {EXPECTED}")
        return content if coco else {"images": images}


_TYPES: dict[str, Any] = {"text": str, "a list": list, "a number or text": (int, str)}


def _field(place: str, entry: Any, field: str, expected: str) -> Any:
    """A field of a JSON object.  Raises DataError unless it has the expected type."""
    value = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(value, _TYPES[expected]):
        raise DataError(f"{place}: {field} is {str(value)[:50]!r}, expected {expected}")
    return value


def _image(file: pathlib.Path, place: str, below: str, name: str) -> Listed:
    """An image, yet without captions.  below: a sub-folder that it may be in, or ""."""
    parts = pathlib.PurePosixPath(below, name)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"{place}: file name {str(parts)!r}, expected one within a folder")
    return Listed(name, _folders(file, below), [])


@functools.cache
def _folders(file: pathlib.Path, below: str) -> tuple[pathlib.Path, ...]:
    around = [
        root / folder
        for root in (file.parent, file.absolute().parent.parent)
        for folder in ("", "images")
    ]
    return tuple(folder / part for folder in around for part in dict.fromkeys((below, "")))


def _karpathy(file: pathlib.Path, content: dict[str, Any], bad: Bad) -> dict[str, list[Listed]]:
    splits: dict[str, list[Listed]] = {}
    seen = set()
    for number, entry in enumerate(content["images"]):
        place = f"{file}: images[{number}]"
        name, split = (_field(place, entry, field, "text") for field in ("filename", "split"))
        if split not in KARPATHY:
            raise DataError(f"{place}: split is {split!r}, expected {', '.join(KARPATHY)}")
        below = _field(place, entry, "filepath", "text") if "filepath" in entry else ""
        image = _image(file, place, below, name)
        for index, sentence in enumerate(
            _field(place, entry, "sentences", "a list") if "sentences" in entry else ()
        ):
            _add(
                image,
                _text(f"{place}: sentences[{index}]", sentence),
                f"caption {index} of {name}",
                bad,
            )
        imgid = _field(place, entry, "imgid", "a number or text") if "imgid" in entry else None
        if imgid is not None and imgid in seen:
            bad.add("images with a duplicate imgid", name)
        else:
            splits.setdefault(KARPATHY[split], []).append(image)
        seen.add(imgid)
    return splits


def _text(place: str, sentence: Any) -> str:
    if not (isinstance(sentence, dict) and "tokens" in sentence):
        return plain(_field(place, sentence, "raw", "text"))
    words = _field(place, sentence, "tokens", "a list")
    if not all(isinstance(word, str) for word in words):
        raise DataError(f"{place}: tokens are {str(words)[:50]!r}, expected texts")
    return " ".join(" ".join(words).split())


def _coco(file: pathlib.Path, content: dict[str, Any], bad: Bad) -> list[Listed]:
    below = re.sub(r"(\.json)?(\.gz)?\Z", "", file.name, flags=re.IGNORECASE).rpartition("_")[2]
    listed: list[tuple[Any, Listed]] = []
    for number, entry in enumerate(_field(str(file), content, "images", "a list")):
        place = f"{file}: images[{number}]"
        identity, name = (
            _field(place, entry, "id", "a number or text"),
            _field(place, entry, "file_name", "text"),
        )
        listed.append((identity, _image(file, place, below, name)))
    # Images with the same id are all unusable, because their captions are ambiguous.
    counts, images = collections.Counter(identity for identity, _ in listed), dict(listed)
    for identity, image in listed:
        if counts[identity] > 1:
            bad.add("images with a duplicate id", image.name)
    seen = set()
    for number, entry in enumerate(content["annotations"]):
        place = f"{file}: annotations[{number}]"
        identity, image_id = (
            _field(place, entry, field, "a number or text") for field in ("id", "image_id")
        )
        raw, annotation = entry.get("caption"), f"annotation {identity} of {file.name}"
        text = "" if raw is None else plain(_field(place, entry, "caption", "text"))
        if identity in seen:
            bad.add("annotations with a duplicate id", annotation)
        elif image_id not in images:
            bad.add(
                "annotations of an image_id that no image has",
                f"{annotation} (image_id {image_id})",
            )
        else:
            _add(images[image_id], text, annotation, bad)
        seen.add(identity)
    return [image for identity, image in listed if counts[identity] == 1]


def _add(image: Listed, text: str, place: str, bad: Bad) -> None:
    if text:
        image.captions.append(text)
    else:
        bad.add("empty captions", place)


def _divided(splits: dict[str, list[Listed]]) -> dict[str, list[Listed]]:
    """Adds missing splits, image by image: see the module."""
    if not splits.keys() - {"all", "train"}:
        (everything,) = splits.values()
        tenth = len(everything) // 10
        train, validation, test = _drawn(everything, len(everything) - 2 * tenth, tenth)
    elif "test" not in splits:
        train = splits.get("train", [])
        validation, test = _drawn(splits["validation"], len(splits["validation"]) // 2)
    elif "validation" not in splits:
        whole, test = splits.get("train", []), splits["test"]
        train, validation = _drawn(whole, len(whole) - len(whole) // 10)
    else:
        return splits
    return {"train": train, "validation": validation, "test": test}


def _drawn(images: list[Listed], *sizes: int) -> list[list[Listed]]:
    """Random disjoint subsets of these sizes, and the rest, each in the order of the images."""
    blocks = np.split(np.random.default_rng(SEED).permutation(len(images)), np.cumsum(sizes))
    return [[images[row] for row in np.sort(block)] for block in blocks]


def _found(
    splits: dict[str, list[Listed]], bad: Bad
) -> dict[str, list[tuple[Listed, pathlib.Path]]]:
    """Images with captions and a distinct file, together with the file."""
    located: dict[str, list[tuple[Listed, pathlib.Path]]] = {}
    seen = set()
    for split, images in splits.items():
        located[split] = []
        for image in images:
            file = next(
                (
                    folder / image.name
                    for folder in image.folders
                    if os.path.isfile(folder / image.name)
                ),
                None,
            )
            if not image.captions:
                bad.add("images without a caption", image.name)
            elif file is None:
                bad.add(
                    f"images that are in none of {', '.join(map(str, image.folders))}", image.name
                )
            elif file in seen:
                bad.add("images that are listed twice", image.name)
            else:
                located[split].append((image, file))
            seen.add(file)
    return located
