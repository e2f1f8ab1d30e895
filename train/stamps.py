"""Scenes of cut-out pictures with captions (see ``train.data.scenes``).

stamps:PATH, stamps:PATH@fr, stamps:PATH@COUNT, stamps:PATH@fr,COUNT
one or two cut-outs on a canvas 64x64 of colours, captioned in English or French, from a folder of
images/*.png with transparency and captions.tsv with columns image, caption_en and caption_fr: COUNT (12,000)
train, 500 validate and 1,000 test, all of these two kinds that occur together in no other split.  A kind is a
caption; of those with several pictures the last one is kept for scenes of a further split, "one-shot"
"""

import collections
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from train import tokens as tokenizers
from train.composition import RELATIONS, SEED, Phrase, Scenes, arrange, say, tokenize
from train.dataset import Columns
from train.formats import (
    DataError,
    image_size,
    named,
    not_read,
    opened_image,
    read_image,
    read_lines,
    visible,
)
from train.tokens import Tokenizer, pieces

SCENES = {"train": 12_000, "validation": 500, "test": 1_000, "one-shot": 500}
BOARD, LENGTHS, LONG_OF_TWO, SHORT_OF_ONE = (
    64,
    (18, 20, 22, 24, 26, 28, 31, 34, 38, 42, 46, 50, 54),
    9,
    4,
)
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
_ADJECTIVES = "toute très autre petit petite grand grande gros grosse vieux vieille énorme beau bel belle jeune joli jolie long longue"
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
    if not (
        re.match(_ARTICLES[language], plain)
        and _WORDS.fullmatch(plain)
        and len(plain.split()) <= MOST_WORDS
    ):
        return None
    if language == "en":  # the noun is last, or before what is added to it
        return Phrase(plain, len(pieces("words", _ENDS.split(plain)[0])) - 1)
    before = _BEFORE.match(plain)  # and here first, but for a few adjectives
    head = len(pieces("words", plain[: before.end()])) if before else 0
    return Phrase(plain, min(head, len(pieces("words", plain)) - 1))


def read_stamps(
    folder: pathlib.Path, language: str = "en", scenes: int = 0, tokenizer: Tokenizer | None = None
) -> Scenes:
    """Scenes of the cut-outs in a folder, of which ``scenes`` train, or as many as ``SCENES`` says.

    tokenizer: of the captions; fitted to the training captions unless given.
    Raises DataError that names the file, and the line of captions.tsv.
    """
    if language not in RELATIONS:
        raise DataError(f"{folder}: language {language!r}, allowed: {', '.join(RELATIONS)}")
    phrases, cutouts, notes = _cutouts(folder, language)
    if len(phrases) < 3:
        raise DataError(
            f"{folder / 'captions.tsv'}: {len(phrases)} kinds of pictures that can serve, expected at least 3"
        )
    extents = np.array(
        [[image.shape[:2] for image in cutout.scaled] for cutout in cutouts], np.int32
    )
    pictures: list[list[int]] = [[] for _ in phrases]
    for index, cutout in enumerate(cutouts):
        pictures[cutout.kind].append(index)
    shown = [found[:-1] or found for found in pictures]
    kept = np.array([found[-1] for found in pictures if len(found) > 1], int)
    kinds = np.array([cutout.kind for cutout in cutouts])
    apart = _held_out(np.random.default_rng([SEED, 10]), len(phrases))
    made: dict[str, Columns] = {}
    captions: dict[str, list[str]] = {}
    counts = SCENES | ({"train": scenes} if scenes else {})
    for number, (split, count) in enumerate(counts.items()):
        if split == "one-shot" and not len(kept):
            continue
        rng = np.random.default_rng([SEED, 11, number])
        items = _chosen(rng, split, count, shown, kept, kinds, apart)
        axes = rng.integers(0, 2, count)
        alone = items[:, 1] < 0
        sizes = np.where(
            alone,
            rng.integers(SHORT_OF_ONE, len(LENGTHS), count),
            rng.integers(0, LONG_OF_TWO, (2, count)),
        ).T
        boxes, sizes = arrange(rng, extents, items, sizes, axes, BOARD)
        found = np.where(items < 0, -1, kinds[items])
        images, pixels = _drawn(
            rng, cutouts, items, sizes, boxes, np.uint8 if len(phrases) < 256 else np.uint16
        )
        captions[split], places = say(phrases, found, axes, language)
        made[split] = {"image": images, "boxes": boxes, **places, "pixels": pixels}
    tokenizer = tokenizer or tokenizers.fit("words", captions["train"], size=0, min_count=1)
    tokenize(made, captions, tokenizer)
    sentences = {split: tuple(("", text) for text in texts) for split, texts in captions.items()}
    said = f"{len(cutouts)} pictures of {len(phrases)} kinds, {int(apart.sum()) // 2:,} pairs of which are together in tests only"
    held = f"{len(kept)} kinds have several pictures, the last of which is in one-shot scenes only"
    return Scenes(
        made, sentences, tokenizer, tuple(each.text for each in phrases), (said, held, *notes)
    )


def categories(folder: pathlib.Path, kinds: Sequence[str]) -> tuple[str, ...]:
    """Of each kind of ``stamps`` in English, what the column category of captions.tsv says of its first picture."""
    file, found = named(folder, "captions.tsv"), {}
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
    rng: np.random.Generator,
    cutouts: list[Cutout],
    items: np.ndarray,
    sizes: np.ndarray,
    boxes: np.ndarray,
    dtype: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, BOARD, BOARD, 3] and pixels [n, BOARD, BOARD]."""
    images = np.empty((len(items), BOARD, BOARD, 3), np.uint8)
    pixels = np.zeros(images.shape[:3], dtype)
    for row, image in enumerate(images):
        ground = _ground(rng)
        for item, size, (top, left, bottom, right) in zip(
            items[row], sizes[row], boxes[row], strict=True
        ):
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
    rows = _rows(named(folder, "captions.tsv"), ("image", f"caption_{language}"))
    phrases: dict[str, Phrase] = {}
    read: list[tuple[str, str, list[np.ndarray]]] = []
    left: dict[str, list[str]] = collections.defaultdict(list)
    seen: set[bytes] = set()
    said = {place: phrase(text, language) for place, _, text in rows}
    alike = collections.Counter(
        text.lower() for text in {found.text for found in said.values() if found}
    )
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
    notes = [
        f"left out: {len(texts)} pictures, {why}, such as {texts[0]!r}"
        for why, texts in left.items()
    ]
    listed = {file for _, file, _ in rows}
    notes += not_read([file for file in visible(folder / "images") if file.name not in listed])
    return [phrases[text] for text in kinds], cutouts, notes


def _rows(file: pathlib.Path, columns: tuple[str, str]) -> list[tuple[str, str, str]]:
    """(place, image, caption) of the lines of a TSV."""
    lines = read_lines(file) or [""]
    header = lines[0].split("\t")
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file}:1: columns {', '.join(header)}; missing: {', '.join(missing)}")
    found, places = [], {}
    for number, line in enumerate(lines[1:], 2):
        place, cells = f"{file}:{number}", line.split("\t")
        if len(cells) != len(header):
            raise DataError(
                f"{place}: {len(cells)} columns, expected the {len(header)} of the first line"
            )
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
        with opened_image(file) as image:
            if image.format != "PNG":
                raise DataError(f"{file}: {image.format}, expected a PNG")
        height, width = image_size(file)
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
    return (
        small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else small[:0, :0]
    )
