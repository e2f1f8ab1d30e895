"""Synthetic scenes with captions and known object positions.

    digit_scenes, digit_scenes:COUNT
                   one to three digits of the embedded set, at about twice their size, on an
                   uneven grey canvas 48x48: COUNT (20,000) train, 1,000 validation and 2,000 test
                   scenes.  Digits stay in their split, so test digits occur in no training scene.
                   A caption: "a seven left of a two left of an eight"
    stamps:PATH    see ``train.stamps``

A caption names all objects in order along an axis, joined by "above" or "left of".  ``relation``
defines the axis: the one along which no two boxes overlap; if that holds for both axes, the one
along which the outermost centres are farther apart, in these scenes by at least MARGIN pixels.

A table has

    inputs         {"image": uint8 [n, height, width, channels], "target": int32 [n, time]}, where
                   "target" are the decoder inputs: the targets shifted by one, starting with END
    targets, mask  [n, time]

and, with objects in the order of the caption,

    boxes          int32 [n, objects, 4]: top, left, bottom, right, the latter two exclusive; zeros
                   for no object
    phrases        int32 [n, objects, 2]: span of the object's name with its article in the caption,
                   in tokens, end exclusive; zeros for no object
    words          int32 [n, objects]: position of the noun; -1 for no object
    pixels         [n, height, width]: 0 for background, else 1 + the object's kind; uint8, or
                   uint16 for many kinds
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from train import tokens as tokenizers
from train.composition import RELATIONS, SEED, Phrase, Scenes, arrange, say, tokenize
from train.data import digits as embedded
from train.data.base import Finder, Form, Source, number, path_after, split_options
from train.dataset import Columns, Dataset, Table
from train.stamps import read_stamps
from train.tasks import Captioning
from train.tokens import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """Captioned scenes."""

    kind: ClassVar[str] = "scenes"
    identity: ClassVar[tuple[str, ...]] = ("path", "language", "count")
    counts: ClassVar[tuple[str, ...]] = ("count", "max_length")
    path: str = ""
    """Folder of cut-out pictures, see ``train.stamps``; "" for the embedded digits."""
    language: Literal["en", "fr"] = "en"
    """Language of the captions of stamps."""
    count: int | None = None
    """Number of training scenes; the default depends on the kind of scenes."""
    max_length: int = 100
    """Most tokens in a generated caption, not counting the end token."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        if self.language != "en" and not self.path:
            raise ValueError(f"data.language={self.language!r}, allowed without data.path: en")

    def __str__(self) -> str:
        if not self.path:
            return "digit_scenes" + (f":{self.count}" if self.count else "")
        options = [self.language] * (self.language != "en") + [str(self.count)] * bool(self.count)
        return f"stamps:{self.path}" + (f"@{','.join(options)}" if options else "")


def _digits(rest: str) -> Config:
    return Config(count=scenes_count(rest.removeprefix(":"))) if rest else Config()


def _stamps(path: str) -> Config:
    folder, options = split_options(path)
    words = options.split(",") if options else []
    count = (
        scenes_count(words.pop()) if words and (len(words) > 1 or words[0].isdecimal()) else None
    )
    language: Any = words[0] if words else "en"
    return Config(path=folder, language=language, count=count)


FORMS = {
    "digit_scenes": Form("digit_scenes[:COUNT]", "captioned scenes of digits, embedded", _digits),
    "stamps": Form(
        "stamps:PATH[@LANGUAGE,COUNT]", "captioned scenes of pictures", path_after(_stamps)
    ),
}


def load(cfg: Config, find: Finder) -> Dataset:
    """Images and captions.  Extras: "sentences", boxes, phrases, words, pixels.  See the module."""
    trained = find.task_of(Captioning, cfg)
    scenes = make(cfg, find, trained.target if trained else None)
    tables = {
        split: Table(
            {name: table[name] for name in ("inputs", "targets", "mask")},
            extras={name: table[name] for name in ("boxes", "phrases", "words", "pixels")}
            | {"sentences": scenes.sentences[split]},
        )
        for split, table in scenes.splits.items()
    }
    task = Captioning(scenes.tokenizer, cfg.max_length)
    return Dataset(str(cfg), tables, task, (0.0, 255.0), scenes.notes)


def make(cfg: Any, find: Finder, tokenizer: Tokenizer | None = None) -> "Scenes":
    """The scenes of a Config with path, language and count.  Raises DataError naming the file.

    tokenizer: for the captions; fitted by default.
    """
    if cfg.path:
        folder = find(cfg.path)
        return read_stamps(folder, cfg.language, cfg.count or 0, tokenizer)
    digits = embedded.load(embedded.Config(), find).splits
    return digit_scenes(digits, cfg.count or SCENES, tokenizer)


def scenes_count(text: str) -> int:
    """A number of scenes in a one-word form."""
    return number(text, 1, 999_999, "scenes")


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = tuple(Phrase(f"an {digit}" if digit == "eight" else f"a {digit}", 1) for digit in DIGITS)
CANVAS, SIDES, MOST_DIGITS = 48, (14, 15, 16, 17, 18), 3
SCENES, HELD_OUT = 20_000, {"validation": 1_000, "test": 2_000}
INK = 0.3
"""Least brightness (of 1) of a pixel that counts as part of a digit."""
BLOCK = 500
"""Scenes per random generator.  So a smaller set of scenes is the beginning of a larger one."""


class Digits(NamedTuple):
    """Digits at all SIDES, each in the top left corner of a square.

    shade [n, sides, 18, 18]: brightness 0..1.  extents [n, sides, 2]: height, width.  labels [n].
    """

    shade: np.ndarray
    extents: np.ndarray
    labels: np.ndarray


def digit_scenes(
    digits: Mapping[str, Any], count: int = SCENES, tokenizer: Tokenizer | None = None
) -> Scenes:
    """Scenes of digits.

    digits: {split: {"inputs": uint8 [n, 8, 8, 1] of 0..16, "targets": [n]}}.
    count: number of training scenes.  tokenizer: for the captions; fitted by default.
    """
    tables: dict[str, Columns] = {}
    captions: dict[str, list[str]] = {}
    for index, (split, wanted) in enumerate({"train": count, **HELD_OUT}.items()):
        large = enlarged(digits[split]["inputs"], digits[split]["targets"])
        blocks, captions[split] = [], []
        for block in range(-(-wanted // BLOCK)):
            table, block_captions = _digit_block(np.random.default_rng([SEED, index, block]), large)
            blocks.append(table)
            captions[split] += block_captions
        tables[split] = {
            key: np.concatenate([table[key] for table in blocks])[:wanted] for key in blocks[0]
        }
        del captions[split][wanted:]
    # Fitted to all possible words, so tokens do not depend on the number of scenes.
    possible = [
        between.join((phrase.text, phrase.text))
        for phrase in PHRASES
        for between in RELATIONS["en"]
    ]
    tokenizer = tokenizer or tokenizers.fit("words", possible, size=0, min_count=1)
    tokenize(tables, captions, tokenizer)
    sentences = {split: tuple(("", text) for text in texts) for split, texts in captions.items()}
    sources = ", ".join(f"{len(digits[split]['targets']):,} {split}" for split in tables)
    notes = (f"one to three digits per scene, from {sources} images; none is in two splits",)
    return Scenes(tables, sentences, tokenizer, DIGITS, notes)


def enlarged(images: np.ndarray, labels: np.ndarray) -> Digits:
    """Scales digits uint8 [n, 8, 8, 1] to all SIDES, bilinearly, cropped to pixels >= INK."""
    largest = SIDES[-1]
    shade = np.zeros((len(images), len(SIDES), largest, largest), np.float32)
    extents = np.zeros((len(images), len(SIDES), 2), np.int32)
    places = np.arange(largest)
    for index, side in enumerate(SIDES):
        weights = _bilinear(images.shape[1], side)
        whole = np.zeros((len(images), largest, largest), np.float32)
        whole[:, :side, :side] = (
            weights @ images[..., 0].astype(float) @ weights.T / (16 * (2 * side) ** 2)
        )
        ink = whole >= INK
        low = [np.argmax(ink.any(axis=axis), axis=1) for axis in (2, 1)]
        high = [largest - np.argmax(np.flip(ink.any(axis=axis), axis=1), axis=1) for axis in (2, 1)]
        extents[:, index] = np.stack(high, axis=1) - np.stack(low, axis=1)
        # Move the box to the top left corner.  Indices wrap, but only outside the box, which is
        # masked.
        from_row, from_column = ((places + start[:, None]) % largest for start in low)
        moved = whole[
            np.arange(len(images))[:, None, None], from_row[:, :, None], from_column[:, None, :]
        ]
        inside = [places < extents[:, index, axis, None] for axis in (0, 1)]
        shade[:, index] = moved * (inside[0][:, :, None] & inside[1][:, None, :])
    return Digits(shade, extents, labels)


def _bilinear(length: int, longer: int) -> np.ndarray:
    """Weights [longer, length] of linear interpolation, clamped at the edges, times 2 longer.

    The factor makes them integers, so sums are exact and the same on every machine.
    """
    place = ((2 * np.arange(longer) + 1) * length - longer).clip(0, 2 * longer * (length - 1))
    return np.maximum(
        2 * longer - np.abs(place[:, None] - 2 * longer * np.arange(length)), 0
    ).astype(float)


def _digit_block(rng: np.random.Generator, digits: Digits) -> tuple[Columns, list[str]]:
    slots = (BLOCK, MOST_DIGITS)
    present = np.arange(MOST_DIGITS) < rng.integers(1, MOST_DIGITS, (BLOCK, 1), endpoint=True)
    items = np.where(present, rng.integers(0, len(digits.labels), slots), -1)
    axes = rng.integers(0, 2, BLOCK)
    boxes, sizes = arrange(
        rng, digits.extents, items, rng.integers(0, len(SIDES), slots), axes, CANVAS
    )
    # Background with a gradient and noise.  Below and right of the canvas, room for the empty parts
    # of the squares of digits.
    largest, slope = SIDES[-1], np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32)
    level, noise = rng.uniform(25, 90, (BLOCK, 1, 1)), rng.uniform(3, 12, (BLOCK, 1, 1))
    tilt = rng.uniform(-30, 30, (2, BLOCK, 1, 1))
    ground = (level + tilt[0] * slope[:, None] + tilt[1] * slope).astype(np.float32)
    bright = rng.uniform(180, 250, slots).astype(np.float32)
    cover, shine = np.zeros((2, BLOCK, CANVAS + largest, CANVAS + largest), np.float32)
    pixels = np.zeros(cover.shape, np.uint8)
    for index in range(MOST_DIGITS):
        rows, square = np.flatnonzero(present[:, index]), np.arange(largest)
        shade = digits.shade[items[rows, index], sizes[rows, index]]
        kinds = digits.labels[items[rows, index]].astype(np.uint8)
        top, left = boxes[rows, index, :2].T
        where = (
            rows[:, None, None],
            (top[:, None] + square)[:, :, None],
            (left[:, None] + square)[:, None, :],
        )
        cover[where] += shade
        shine[where] += shade * bright[rows, index, None, None]
        pixels[where] += np.where(shade >= INK, 1 + kinds[:, None, None], np.uint8(0))
    image = ground * (1 - cover[:, :CANVAS, :CANVAS]) + shine[:, :CANVAS, :CANVAS]
    image += noise.astype(np.float32) * rng.standard_normal(image.shape, np.float32)
    captions, places = say(PHRASES, np.where(present, digits.labels[items], -1), axes, "en")
    table = {
        "image": image.round().clip(0, 255).astype(np.uint8)[..., None],
        "boxes": boxes,
        **places,
        "pixels": pixels[:, :CANVAS, :CANVAS],
    }
    return table, captions
