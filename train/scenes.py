"""Images of scenes with captions: where each object is, is known.

    digit_scenes, digit_scenes:COUNT
                   one to three digits of the embedded set, about twice as large, on a grey canvas 48x48 that is not quite even:
                   COUNT train (20,000), 1,000 validate, 2,000 test.  Digits stay in their split, so that those of test scenes
                   occur in no training scene.  "a seven left of a two left of an eight"
    stamps:PATH    see ``train.stamps``

A caption names all objects in order along an axis, "above" or "left of" one another.  The rule is that of ``relation``: the axis
is the one along which no two boxes overlap; if that holds for both, the one along which the outermost centres lie farther apart.
Scenes are placed so that they do by at least MARGIN pixels.

A table has inputs: {"image" uint8 [n, height, width, channels], "target" int32 [n, time]} (tokens before each target, the first
of them END), targets and mask [n, time]; and of the objects in the order of the caption: boxes int32 [n, objects, 4] (top, left,
bottom, right, the latter two exclusive; zeros where there is none), phrases int32 [n, objects, 2] (where in the caption what the
object is called begins and ends, article and all, the latter exclusive; zeros where there is none) and words int32 [n, objects]
(where the noun of it is; -1 where there is none).  pixels [n, height, width] are 0 for background, else 1 + the object's kind;
uint8, or uint16 where there are too many kinds for that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train import tokens as tokenizers
from train.tokens import Tokenizer, pieces, taught

Table = dict[str, Any]
SEED = 2015
MARGIN = 3

RELATIONS = {"en": (" above ", " left of "), "fr": (", en dessous ", ", à sa droite ")}
"""What stands between two objects that follow each other along rows, and along columns; grammatical for any two nouns."""


class Scenes(NamedTuple):
    """Scenes as data.  sentences: {split: (("", caption), ...)}.  kinds: what ``pixels`` count.  notes: for people."""

    splits: dict[str, Table]
    sentences: dict[str, tuple[tuple[str, str], ...]]
    tokenizer: Tokenizer
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


class Phrase(NamedTuple):
    """What an object is called, and which of its words (as tokens) says what it is."""

    text: str
    head: int


def relation(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How the objects of scenes stand to each other; boxes [n, objects, 4].

    Returns the axis [n], 0 for rows ("above") and 1 for columns ("left of"), and by how many pixels it is farther from the
    first to the last centre than along the other axis, if boxes are disjoint along that one too [n]; -1 if along neither.
    """
    boxes = boxes.astype(np.int64)
    there = boxes[..., 2] > boxes[..., 0]
    one, other = np.triu_indices(boxes.shape[1], 1)
    scores = []
    for axis in (0, 1):
        low, high = boxes[..., axis], boxes[..., axis + 2]
        apart = (high[:, one] <= low[:, other]) | (high[:, other] <= low[:, one]) | ~(there[:, one] & there[:, other])
        centres = (low + high) / 2
        spread = np.where(there, centres, -np.inf).max(axis=1) - np.where(there, centres, np.inf).min(axis=1)
        scores.append(np.where(apart.all(axis=1), spread, -1))
    found = np.stack(scores, axis=1)
    best = found.max(axis=1)
    return found.argmax(axis=1), np.where(best < 0, -1, best - np.maximum(found.min(axis=1), 0))


def caption(boxes: np.ndarray, phrases: Sequence[str], language: str = "en") -> str:
    """The caption of a scene from boxes [objects, 4] and what the objects are called, in any order."""
    axis = int(relation(boxes[None])[0][0])
    order = map(int, np.argsort(boxes[:, axis], kind="stable"))
    return RELATIONS[language][axis].join(phrases[index] for index in order if boxes[index, 2] > boxes[index, 0])


def arrange(
    rng: np.random.Generator, extents: np.ndarray, items: np.ndarray, sizes: np.ndarray, axes: np.ndarray, canvas: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, objects, 4] in order along the axis, and the sizes, smaller where there was no room for all.

    extents [items, sizes, 2]: height and width of everything.  items, sizes [n, objects]: indices into these, -1 where there is
    no object.  axes [n].
    """
    there = items >= 0
    rows, counts, sizes = np.arange(len(items)), there.sum(axis=1), np.where(there, sizes, -1)
    while True:
        shapes = extents[items, sizes] * there[..., None]
        along = shapes[rows, :, axes]
        room = canvas - along.sum(axis=1) - (counts - 1)  # with a pixel between any two
        if (room >= 0).all():
            break
        full = np.flatnonzero(room < 0)
        sizes[full, sizes[full].argmax(axis=1)] -= 1
    gaps = np.sort(np.where(there, rng.integers(0, room + 1, items.T.shape).T, canvas), axis=1)
    boxes = np.zeros((*items.shape, 4), np.int32)
    starts = np.where(there, gaps + np.cumsum(along + 1, axis=1) - (along + 1), 0)
    across = shapes[rows, :, 1 - axes]
    for axis in (0, 1):
        mine = axes == axis
        boxes[mine, :, axis], boxes[mine, :, axis + 2] = starts[mine], (starts + along)[mine]
    open_ = rows
    while len(open_):
        other = 1 - axes[open_]
        drawn = np.where(there[open_], rng.integers(0, canvas + 1 - across[open_]), 0)
        for axis in (0, 1):
            mine = other == axis
            boxes[open_[mine], :, axis] = drawn[mine]
            boxes[open_[mine], :, axis + 2] = (drawn + across[open_])[mine]
        axis, lead = relation(boxes[open_])
        open_ = open_[(counts[open_] > 1) & ((axis != axes[open_]) | (lead < MARGIN))]
    return boxes, sizes


def say(phrases: Sequence[Phrase], items: np.ndarray, axes: np.ndarray, language: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Captions, and columns "phrases" and "words" of a table.  items [n, objects]: phrases in their order, or -1."""
    lengths = [len(pieces("words", phrase.text)) for phrase in phrases]
    between = [len(pieces("words", each)) for each in RELATIONS[language]]
    spans, words, captions = np.zeros((*items.shape, 2), np.int32), np.full(items.shape, -1, np.int32), []
    for row, (found, axis) in enumerate(zip(items.tolist(), axes.tolist(), strict=True)):
        place, texts = 0, []
        for index, item in enumerate(found):
            if item >= 0:
                words[row, index] = place + phrases[item].head
                spans[row, index] = place, place + lengths[item]
                place += lengths[item] + between[axis]
                texts.append(phrases[item].text)
        captions.append(RELATIONS[language][axis].join(texts))
    return captions, {"phrases": spans, "words": words}


def tokenize(made: dict[str, Table], captions: dict[str, list[str]], tokenizer: Tokenizer) -> None:
    """Adds what is made of captions to the tables."""
    coded = {text: tokenizer.encode(text) for texts in captions.values() for text in dict.fromkeys(texts)}
    time = 1 + max(map(len, coded.values()))
    for split, texts in captions.items():
        before, targets, mask = taught([coded[text] for text in texts], time)
        table = made[split]
        image = table.pop("image")
        made[split] = {
            "inputs": {"image": image, "target": before},
            "targets": targets,
            "mask": mask,
            **table,
        }


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = tuple(Phrase(f"an {digit}" if digit == "eight" else f"a {digit}", 1) for digit in DIGITS)
CANVAS, SIDES, MOST_DIGITS = 48, (14, 15, 16, 17, 18), 3
SCENES, HELD_OUT = 20_000, {"validation": 1_000, "test": 2_000}
INK = 0.3
"""How bright a pixel of a digit is that belongs to it, of 1."""
BLOCK = 500
"""Scenes with random numbers of their own, so that fewer scenes are the first of more."""


class Digits(NamedTuple):
    """Digits at all SIDES, each in the corner of its square.  shade [n, sides, 18, 18], 0..1; extents [n, sides, 2]."""

    shade: np.ndarray
    extents: np.ndarray
    labels: np.ndarray


def digit_scenes(digits: Mapping[str, Table], count: int = SCENES, tokenizer: Tokenizer | None = None) -> Scenes:
    """Scenes of digits; digits: {split: {"inputs": uint8 [n, 8, 8, 1] of 0..16, "targets": [n]}}.

    count: of training scenes.  tokenizer: of the captions; fitted unless given.
    """
    made: dict[str, Table] = {}
    captions: dict[str, list[str]] = {}
    for number, (split, wanted) in enumerate({"train": count, **HELD_OUT}.items()):
        large = enlarged(digits[split]["inputs"], digits[split]["targets"])
        blocks, captions[split] = [], []
        for block in range(-(-wanted // BLOCK)):
            table, said = _digit_block(np.random.default_rng([SEED, number, block]), large)
            blocks.append(table)
            captions[split] += said
        made[split] = {key: np.concatenate([table[key] for table in blocks])[:wanted] for key in blocks[0]}
        del captions[split][wanted:]
    # Fitted to what can be said rather than to what is, so that tokens do not depend on the number of scenes.
    possible = [between.join((phrase.text, phrase.text)) for phrase in PHRASES for between in RELATIONS["en"]]
    tokenizer = tokenizer or tokenizers.fit("words", possible, size=0, min_count=1)
    tokenize(made, captions, tokenizer)
    sentences = {split: tuple(("", text) for text in texts) for split, texts in captions.items()}
    sources = ", ".join(f"{len(digits[split]['targets']):,} {split}" for split in made)
    notes = (f"one to three digits a scene, of {sources} images, none of which is in two splits",)
    return Scenes(made, sentences, tokenizer, DIGITS, notes)


def enlarged(images: np.ndarray, labels: np.ndarray) -> Digits:
    """Digits uint8 [n, 8, 8, 1] at all SIDES (bilinear), cut to the box of what is at least INK."""
    largest = SIDES[-1]
    shade = np.zeros((len(images), len(SIDES), largest, largest), np.float32)
    extents = np.zeros((len(images), len(SIDES), 2), np.int32)
    places = np.arange(largest)
    for index, side in enumerate(SIDES):
        weights = _bilinear(images.shape[1], side)
        whole = np.zeros((len(images), largest, largest), np.float32)
        whole[:, :side, :side] = weights @ images[..., 0].astype(float) @ weights.T / (16 * (2 * side) ** 2)
        ink = whole >= INK
        low = [np.argmax(ink.any(axis=axis), axis=1) for axis in (2, 1)]
        high = [largest - np.argmax(np.flip(ink.any(axis=axis), axis=1), axis=1) for axis in (2, 1)]
        extents[:, index] = np.stack(high, axis=1) - np.stack(low, axis=1)
        from_row, from_column = ((places + start[:, None]) % largest for start in low)
        moved = whole[np.arange(len(images))[:, None, None], from_row[:, :, None], from_column[:, None, :]]
        inside = [places < extents[:, index, axis, None] for axis in (0, 1)]
        shade[:, index] = moved * (inside[0][:, :, None] & inside[1][:, None, :])
    return Digits(shade, extents, labels)


def _bilinear(length: int, longer: int) -> np.ndarray:
    """Weights [longer, length] of interpolation, edges held, times 2 longer: whole numbers, whose sums no machine rounds."""
    place = ((2 * np.arange(longer) + 1) * length - longer).clip(0, 2 * longer * (length - 1))
    return np.maximum(2 * longer - np.abs(place[:, None] - 2 * longer * np.arange(length)), 0).astype(float)


def _digit_block(rng: np.random.Generator, digits: Digits) -> tuple[Table, list[str]]:
    slots = (BLOCK, MOST_DIGITS)
    there = np.arange(MOST_DIGITS) < rng.integers(1, MOST_DIGITS, (BLOCK, 1), endpoint=True)
    items = np.where(there, rng.integers(0, len(digits.labels), slots), -1)
    axes = rng.integers(0, 2, BLOCK)
    boxes, sizes = arrange(rng, digits.extents, items, rng.integers(0, len(SIDES), slots), axes, CANVAS)
    # Ground that slopes and is noisy; what is beyond the canvas, below and to the right, is where squares of digits end.
    largest, slope = SIDES[-1], np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32)
    level, noise = rng.uniform(25, 90, (BLOCK, 1, 1)), rng.uniform(3, 12, (BLOCK, 1, 1))
    tilt = rng.uniform(-30, 30, (2, BLOCK, 1, 1))
    ground = (level + tilt[0] * slope[:, None] + tilt[1] * slope).astype(np.float32)
    bright = rng.uniform(180, 250, slots).astype(np.float32)
    cover, shine = np.zeros((2, BLOCK, CANVAS + largest, CANVAS + largest), np.float32)
    pixels = np.zeros(cover.shape, np.uint8)
    for index in range(MOST_DIGITS):
        rows, square = np.flatnonzero(there[:, index]), np.arange(largest)
        shade = digits.shade[items[rows, index], sizes[rows, index]]
        kinds = digits.labels[items[rows, index]].astype(np.uint8)
        top, left = boxes[rows, index, :2].T
        where = rows[:, None, None], (top[:, None] + square)[:, :, None], (left[:, None] + square)[:, None, :]
        cover[where] += shade
        shine[where] += shade * bright[rows, index, None, None]
        pixels[where] += np.where(shade >= INK, 1 + kinds[:, None, None], np.uint8(0))
    image = ground * (1 - cover[:, :CANVAS, :CANVAS]) + shine[:, :CANVAS, :CANVAS]
    image += noise.astype(np.float32) * rng.standard_normal(image.shape, np.float32)
    captions, places = say(PHRASES, np.where(there, digits.labels[items], -1), axes, "en")
    table = {
        "image": image.round().clip(0, 255).astype(np.uint8)[..., None],
        "boxes": boxes,
        **places,
        "pixels": pixels[:, :CANVAS, :CANVAS],
    }
    return table, captions
