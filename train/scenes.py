r"""Images of scenes with captions: where each object is, is known.

    digit_scenes, digit_scenes:COUNT
                   one to three digits of the embedded set, about twice as large, on a grey canvas 48x48 that is not quite even:
                   COUNT train (20,000), 1,000 validate, 2,000 test.  Digits stay in their split, so that those of test scenes
                   occur in no training scene.  "a seven left of a two left of an eight"
    stamps:PATH, stamps:PATH@fr
                   one or two cut-outs on a canvas 64x64 of colours, captioned in English or French, from a folder of
                   images/*.png with transparency and captions.tsv with columns image, caption_en and caption_fr: 12,000 train,
                   500 validate and 1,000 test, all of these two kinds that occur together in no other split.  A kind is a
                   caption; of those with several pictures the last one is kept for scenes of a further split, "one-shot"

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

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from train import tokens as tokenizers
from train.formats import DataError, opened, read_image
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
    tokenizers: dict[str, Tokenizer]
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


class Phrase(NamedTuple):
    """What an object is called, and which of its words (as tokens) says what it is."""

    text: str
    head: int


# ---------------------------------------------------------------- where objects are, and how that is said


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


def _place(
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


def _said(
    phrases: Sequence[Phrase], items: np.ndarray, axes: np.ndarray, language: str
) -> tuple[list[str], dict[str, np.ndarray]]:
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


def _with_tokens(made: dict[str, Table], captions: dict[str, list[str]], tokenizer: Tokenizer) -> None:
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


# ---------------------------------------------------------------- digits

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


def digit_scenes(digits: Mapping[str, Table], count: int = SCENES) -> Scenes:
    """Scenes of digits; digits: {split: {"inputs": uint8 [n, 8, 8, 1] of 0..16, "targets": [n]}}.  count: of training scenes."""
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
    tokenizer = tokenizers.fit("words", possible, size=0, min_count=1)
    _with_tokens(made, captions, tokenizer)
    sentences = {split: tuple(("", text) for text in texts) for split, texts in captions.items()}
    sources = ", ".join(f"{len(digits[split]['targets']):,} {split}" for split in made)
    notes = (f"one to three digits a scene, of {sources} images, none of which is in two splits",)
    return Scenes(made, sentences, {"target": tokenizer}, DIGITS, notes)


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
    boxes, sizes = _place(rng, digits.extents, items, rng.integers(0, len(SIDES), slots), axes, CANVAS)
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
    captions, places = _said(PHRASES, np.where(there, digits.labels[items], -1), axes, "en")
    table = {
        "image": image.round().clip(0, 255).astype(np.uint8)[..., None],
        "boxes": boxes,
        **places,
        "pixels": pixels[:, :CANVAS, :CANVAS],
    }
    return table, captions


# ---------------------------------------------------------------- stamps

STAMP_SCENES = {"train": 12_000, "validation": 500, "test": 1_000, "one-shot": 500}
BOARD, LENGTHS, LONG_OF_TWO, SHORT_OF_ONE = 64, (18, 20, 22, 24, 26, 28, 31, 34, 38, 42, 46, 50, 54), 9, 4
"""Sides of the canvas; longest sides of cut-outs: of two, the first LONG_OF_TWO; of one alone, those from SHORT_OF_ONE."""
LARGEST = 96
"""Longest side at which a cut-out is kept."""
LEAST_PIXELS = 20
"""Pixels that a cut-out must have at any size."""
MOST_WORDS = 4
HELD_OUT_PAIRS = 0.1

_ARTICLES = {"en": r"(?:an?|the|some) ", "fr": r"(?:(?:une?|des?|du|les?|la) |l['’])"}
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*")
_ENDS = re.compile(r" (?:of|in|at|with|on|for|playing) ")
_ADJECTIVES = (
    "toute très autre petit petite grand grande gros grosse vieux vieille énorme beau bel belle jeune joli jolie long longue"
)
_BEFORE = re.compile(rf"{_ARTICLES['fr']}(?:(?:{_ADJECTIVES.replace(' ', '|')}) )*")


class Cutout(NamedTuple):
    """A picture of a kind, at all LENGTHS: uint8 [height, width, 4], cut to the box of what is more than half opaque."""

    file: str
    kind: int
    scaled: list[np.ndarray]


def phrase(text: str, language: str) -> Phrase | None:
    """A caption as part of a sentence; None if it is not a noun with its article and at most MOST_WORDS words."""
    plain = " ".join(re.sub(r"\([^)]*\)", "", text).split()).removesuffix(".").strip()
    plain = plain[:1].lower() + plain[1:]
    if not (re.match(_ARTICLES[language], plain) and _WORDS.fullmatch(plain) and len(plain.split()) <= MOST_WORDS):
        return None
    if language == "en":  # the noun is last, or before what is added to it
        return Phrase(plain, len(pieces("words", _ENDS.split(plain)[0])) - 1)
    before = _BEFORE.match(plain)  # and here first, but for a few adjectives
    head = len(pieces("words", plain[: before.end()])) if before else 0
    return Phrase(plain, min(head, len(pieces("words", plain)) - 1))


def stamps(folder: pathlib.Path, language: str = "en") -> Scenes:
    """Scenes of the cut-outs in a folder.  Raises DataError that names the file, and the line of captions.tsv."""
    if language not in RELATIONS:
        raise DataError(f"{folder}: language {language!r}, allowed: {', '.join(RELATIONS)}")
    phrases, cutouts, notes = _cutouts(folder, language)
    if len(phrases) < 3:
        raise DataError(f"{folder / 'captions.tsv'}: {len(phrases)} kinds of pictures that can serve, expected at least 3")
    extents = np.array([[image.shape[:2] for image in cutout.scaled] for cutout in cutouts], np.int32)
    pictures: list[list[int]] = [[] for _ in phrases]
    for index, cutout in enumerate(cutouts):
        pictures[cutout.kind].append(index)
    shown = [found[:-1] or found for found in pictures]
    kept = np.array([found[-1] for found in pictures if len(found) > 1], int)
    kinds = np.array([cutout.kind for cutout in cutouts])
    apart = _held_out(np.random.default_rng([SEED, 10]), len(phrases))
    made: dict[str, Table] = {}
    captions: dict[str, list[str]] = {}
    for number, (split, count) in enumerate(STAMP_SCENES.items()):
        if split == "one-shot" and not len(kept):
            continue
        rng = np.random.default_rng([SEED, 11, number])
        items = _chosen(rng, split, count, shown, kept, kinds, apart)
        axes = rng.integers(0, 2, count)
        alone = items[:, 1] < 0
        sizes = np.where(alone, rng.integers(SHORT_OF_ONE, len(LENGTHS), count), rng.integers(0, LONG_OF_TWO, (2, count))).T
        boxes, sizes = _place(rng, extents, items, sizes, axes, BOARD)
        found = np.where(items < 0, -1, kinds[items])
        images, pixels = _drawn(rng, cutouts, items, sizes, boxes, np.uint8 if len(phrases) < 256 else np.uint16)
        captions[split], places = _said(phrases, found, axes, language)
        made[split] = {"image": images, "boxes": boxes, **places, "pixels": pixels}
    tokenizer = tokenizers.fit("words", captions["train"], size=0, min_count=1)
    _with_tokens(made, captions, tokenizer)
    sentences = {split: tuple(("", text) for text in texts) for split, texts in captions.items()}
    said = f"{len(cutouts)} pictures of {len(phrases)} kinds, {int(apart.sum()) // 2:,} pairs of which are together in tests only"
    held = f"{len(kept)} kinds have several pictures, the last of which is in one-shot scenes only"
    return Scenes(made, sentences, {"target": tokenizer}, tuple(each.text for each in phrases), (said, held, *notes))


def categories(folder: pathlib.Path, kinds: Sequence[str]) -> tuple[str, ...]:
    """Of each kind of ``stamps`` in English, what the column category of captions.tsv says of its first picture."""
    file, found = folder / "captions.tsv", {}
    captions, columns = (_rows(file, ("image", column)) for column in ("caption_en", "category"))
    for (_, _, text), (place, _, category) in zip(captions, columns, strict=True):
        said = phrase(text, "en")
        if said and said.text in kinds and not category:
            raise DataError(f"{place}: no category")
        if said:
            found.setdefault(said.text, category)
    return tuple(found[kind] for kind in kinds)


def _held_out(rng: np.random.Generator, kinds: int) -> np.ndarray:
    """Which two kinds are never together in training, bool [kinds, kinds]."""
    one, other = np.triu_indices(kinds, 1)
    chosen = rng.permutation(len(one))[: max(int(HELD_OUT_PAIRS * len(one)), 1)]
    apart = np.zeros((kinds, kinds), bool)
    apart[one[chosen], other[chosen]] = True
    return apart | apart.T


def _chosen(
    rng: np.random.Generator,
    split: str,
    count: int,
    shown: list[list[int]],
    kept: np.ndarray,
    kinds: np.ndarray,
    apart: np.ndarray,
) -> np.ndarray:
    """Pictures of scenes [count, 2], in the order in which they are said; -1 as the second of one alone."""
    many = np.array([len(found) for found in shown])
    table = np.array([[*found, *[0] * (many.max() - len(found))] for found in shown])

    def picture(kind: np.ndarray) -> np.ndarray:
        return table[kind, rng.integers(0, many[kind])]

    if split == "test":
        pairs = np.argwhere(apart)
        chosen = pairs[rng.integers(0, len(pairs), count)]
        return np.stack([picture(chosen[:, 0]), picture(chosen[:, 1])], axis=1)
    # Each in its turn rather than by chance, so that training shows all kinds.
    turns = kept if split == "one-shot" else np.arange(len(shown))
    first = np.concatenate([rng.permutation(turns) for _ in range(-(-count // len(turns)))])[:count]
    first = first if split == "one-shot" else picture(first)
    kind = kinds[first]
    second = rng.integers(0, len(shown), count)
    while (wrong := (second == kind) | apart[kind, second]).any():
        second[wrong] = rng.integers(0, len(shown), int(wrong.sum()))
    items = np.stack([first, picture(second)], axis=1)
    swapped, alone = rng.random((2, count)) < [[0.5], [0.3]]
    items[swapped] = items[swapped, ::-1]
    items[alone] = np.stack([first, np.full(count, -1)], axis=1)[alone]
    return items


def _drawn(
    rng: np.random.Generator, cutouts: list[Cutout], items: np.ndarray, sizes: np.ndarray, boxes: np.ndarray, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, BOARD, BOARD, 3] and pixels [n, BOARD, BOARD]."""
    images = np.empty((len(items), BOARD, BOARD, 3), np.uint8)
    pixels = np.zeros(images.shape[:3], dtype)
    for row, image in enumerate(images):
        ground = _ground(rng)
        for item, size, (top, left, bottom, right) in zip(items[row], sizes[row], boxes[row], strict=True):
            if item < 0:
                continue
            cutout = cutouts[item].scaled[size]
            opaque = cutout[..., 3:] / np.float32(255)
            part = ground[top:bottom, left:right]
            part += opaque * (cutout[..., :3] - part)
            pixels[row, top:bottom, left:right][opaque[..., 0] > 0.5] = 1 + cutouts[item].kind
        image[...] = ground.round().clip(0, 255)
    return images, pixels


def _ground(rng: np.random.Generator) -> np.ndarray:
    """What is behind: a colour, one that becomes another, or one with noise; float32 [BOARD, BOARD, 3]."""
    colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    look = rng.integers(0, 3)
    ground = np.empty((BOARD, BOARD, 3), np.float32)
    ground[...] = colours[0]
    if look == 1:
        angle, line = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, BOARD)
        part = (np.sin(angle) * line[:, None] + np.cos(angle) * line) / np.sqrt(8) + 0.5
        ground += part[..., None].astype(np.float32) * (colours[1] - colours[0])
    elif look == 2:
        ground += np.float32(rng.uniform(8, 40)) * rng.standard_normal(ground.shape, np.float32)
    return ground


def _cutouts(folder: pathlib.Path, language: str) -> tuple[list[Phrase], list[Cutout], list[str]]:
    """Kinds, their pictures, and notes of what was left out."""
    rows = _rows(folder / "captions.tsv", ("image", f"caption_{language}"))
    phrases: dict[str, Phrase] = {}
    read: list[tuple[str, str, list[np.ndarray]]] = []
    left: dict[str, list[str]] = collections.defaultdict(list)
    seen: set[bytes] = set()
    said = {place: phrase(text, language) for place, _, text in rows}
    alike = collections.Counter(text.lower() for text in {found.text for found in said.values() if found})
    for place, file, text in rows:
        found = said[place]
        if not found:
            left[f"caption is not an article, a noun and at most {MOST_WORDS} words"].append(text)
        elif alike[found.text.lower()] > 1:  # of letters, whose size says which it is
            left["captions differ in capitals only"].append(text)
        else:
            image = _picture(folder / "images" / file, place)
            scaled = [_scaled(image, length) for length in LENGTHS]
            if min((each[..., 3] > 127).sum() for each in scaled) < LEAST_PIXELS:
                left[f"fewer than {LEAST_PIXELS} opaque pixels when small"].append(text)
            elif image.tobytes() in seen:
                left["the same picture as another"].append(text)
            else:
                seen.add(image.tobytes())
                phrases[found.text] = found
                read.append((file, found.text, scaled))
    kinds = sorted(phrases)
    cutouts = [Cutout(file, kinds.index(text), scaled) for file, text, scaled in read]
    notes = [f"left out: {len(texts)} pictures, {why}, such as {texts[0]!r}" for why, texts in left.items()]
    return [phrases[text] for text in kinds], cutouts, notes


def _rows(file: pathlib.Path, columns: tuple[str, str]) -> list[tuple[str, str, str]]:
    """(place, image, caption) of the lines of a TSV."""
    with opened(file) as raw:
        try:
            lines = raw.read().decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 text: {error}") from None
    header = lines[0].removesuffix("\r").split("\t")
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file}:1: columns {', '.join(header)}; missing: {', '.join(missing)}")
    found, places = [], {}
    for number, line in enumerate(lines[1:], 2):
        place, cells = f"{file}:{number}", line.removesuffix("\r").split("\t")
        if len(cells) != len(header):
            raise DataError(f"{place}: {len(cells)} columns, expected the {len(header)} of the first line")
        image, text = (cells[header.index(column)] for column in columns)
        if not image or image in (".", "..") or pathlib.PurePath(image).name != image:
            raise DataError(f"{place}: image {image!r}, expected the name of a file in images/")
        if image in places:
            raise DataError(f"{place}: image {image} again, as in line {places[image]}")
        places[image] = number
        found.append((place, image, text))
    return found


def _picture(file: pathlib.Path, place: str) -> np.ndarray:
    """A cut-out uint8 [height, width, 4], its longest side at most LARGEST.  Raises DataError naming the line and the file."""
    try:
        with opened(file) as raw, Image.open(raw, formats=["PNG"]) as image:
            width, height = image.size
        part = min(LARGEST / max(width, height), 1)
        found = read_image(file, (max(round(part * height), 1), max(round(part * width), 1), 4))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if not (found[..., 3] > 127).any():
        raise DataError(f"{place}: {file}: nothing in it is opaque")
    return found


def _scaled(image: np.ndarray, length: int) -> np.ndarray:
    """Its opaque part, the longest side of the image being so long, uint8 [height, width, 4]."""
    part = length / max(image.shape[:2])
    height, width = (max(round(part * side), 1) for side in image.shape[:2])
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    solid = small[..., 3] > 127
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else small[:0, :0]
