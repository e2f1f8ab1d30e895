"""Scenes of cut-out pictures with captions (see ``train.data.scenes``).

stamps:PATH, stamps:PATH@fr, stamps:PATH@COUNT, stamps:PATH@fr,COUNT

A scene has one or two cut-outs on a coloured canvas 64x64, captioned in English or French.  The
folder has images/*.png with transparency, and captions.tsv with columns image, caption_en and
caption_fr.  There are COUNT (12,000) train, 500 validation and 1,000 test scenes.  Each test scene
has two kinds of pictures that occur together in no other split.  Pictures with the same caption are
a kind.  If a kind has several, the last one is used only in the additional split "one-shot", of 500
scenes.
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
"""Side of the canvas, and longest sides of cut-outs.

Two cut-outs in a scene use the first LONG_OF_TWO lengths; a single one those from SHORT_OF_ONE on.
"""
LARGEST = 96
"""Longest side of a cut-out in memory."""
LEAST_PIXELS = 20
"""Fewest opaque pixels of a cut-out at any size."""
MOST_WORDS = 4
HELD_OUT_PAIRS = 0.1

_ARTICLES = {"en": r"(?:an?|the|some) ", "fr": r"(?:(?:une?|des?|du|les?|la) |l['’])"}
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*")
_ENDS = re.compile(r" (?:of|in|at|with|on|for|playing) ")
_ADJECTIVES = (
    "toute très autre petit petite grand grande gros grosse vieux vieille énorme beau bel belle "
    "jeune joli jolie long longue"
)
_BEFORE = re.compile(rf"{_ARTICLES['fr']}(?:(?:{_ADJECTIVES.replace(' ', '|')}) )*")


class Cutout(NamedTuple):
    """A picture of a kind.

    scaled: uint8 [height, width, 4] at all LENGTHS, cropped to pixels more than half opaque.
    """

    file: str
    kind: int
    scaled: list[np.ndarray]


def phrase(text: str, language: str) -> Phrase | None:
    """A caption as part of a sentence; None unless it is a noun with an article.

    It may have at most MOST_WORDS words.
    """
    plain = " ".join(re.sub(r"\([^)]*\)", "", text).split()).removesuffix(".").strip()
    plain = plain[:1].lower() + plain[1:]
    if not (
        re.match(_ARTICLES[language], plain)
        and _WORDS.fullmatch(plain)
        and len(plain.split()) <= MOST_WORDS
    ):
        return None
    if language == "en":  # the noun is last, or before a preposition
        return Phrase(plain, len(pieces("words", _ENDS.split(plain)[0])) - 1)
    before = _BEFORE.match(plain)  # in French, the noun is first, except for a few adjectives
    head = len(pieces("words", plain[: before.end()])) if before else 0
    return Phrase(plain, min(head, len(pieces("words", plain)) - 1))


def read_stamps(
    folder: pathlib.Path, language: str = "en", scenes: int = 0, tokenizer: Tokenizer | None = None
) -> Scenes:
    """Scenes of the cut-outs in a folder.

    scenes: number of training scenes; 0 for the default.
    tokenizer: for the captions; by default, it is fitted to the training captions.
    Raises DataError naming the file, and the line of captions.tsv.
    """
    if language not in RELATIONS:
        raise DataError(f"{folder}: language {language!r}, allowed: {', '.join(RELATIONS)}")
    phrases, cutouts, notes = _cutouts(folder, language)
    if len(phrases) < 3:
        raise DataError(
            f"{folder / 'captions.tsv'}: {len(phrases)} usable kinds of pictures, "
            "expected at least 3"
        )
    extents = np.array(
        [[image.shape[:2] for image in cutout.scaled] for cutout in cutouts], np.int32
    )
    pictures: list[list[int]] = [[] for _ in phrases]
    for index, cutout in enumerate(cutouts):
        pictures[cutout.kind].append(index)
    shown = [indices[:-1] or indices for indices in pictures]
    kept = np.array([indices[-1] for indices in pictures if len(indices) > 1], int)
    kinds = np.array([cutout.kind for cutout in cutouts])
    apart = _held_out(np.random.default_rng([SEED, 10]), len(phrases))
    tables: dict[str, Columns] = {}
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
        scene_kinds = np.where(items < 0, -1, kinds[items])
        images, pixels = _drawn(
            rng, cutouts, items, sizes, boxes, np.uint8 if len(phrases) < 256 else np.uint16
        )
        captions[split], places = say(phrases, scene_kinds, axes, language)
        tables[split] = {"image": images, "boxes": boxes, **places, "pixels": pixels}
    tokenizer = tokenizer or tokenizers.fit("words", captions["train"], size=0, min_count=1)
    tokenize(tables, captions, tokenizer)
    sentences = {split: tuple(("", text) for text in texts) for split, texts in captions.items()}
    counted = (
        f"{len(cutouts)} pictures of {len(phrases)} kinds; "
        f"{int(apart.sum()) // 2:,} pairs of kinds occur together in test scenes only"
    )
    held = f"{len(kept)} kinds have several pictures; the last one is in one-shot scenes only"
    return Scenes(
        tables, sentences, tokenizer, tuple(kind.text for kind in phrases), (counted, held, *notes)
    )


def categories(folder: pathlib.Path, kinds: Sequence[str]) -> tuple[str, ...]:
    """The category of each kind in English: that of its first picture in captions.tsv."""
    file, by_kind = named(folder, "captions.tsv"), {}
    captions, columns = (_rows(file, ("image", column)) for column in ("caption_en", "category"))
    for (_, _, text), (place, _, category) in zip(captions, columns, strict=True):
        parsed = phrase(text, "en")
        if parsed and parsed.text in kinds and not category:
            raise DataError(f"{place}: no category")
        if parsed:
            by_kind.setdefault(parsed.text, category)
    return tuple(by_kind[kind] for kind in kinds)


def _held_out(rng: np.random.Generator, kinds: int) -> np.ndarray:
    """Pairs of kinds that never occur together in training, bool [kinds, kinds]."""
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
    """Pictures of scenes [count, 2] in the order of the caption; -1 for no second one."""
    many = np.array([len(indices) for indices in shown])
    table = np.array([[*indices, *[0] * (many.max() - len(indices))] for indices in shown])

    def picture(kind: np.ndarray) -> np.ndarray:
        return table[kind, rng.integers(0, many[kind])]

    if split == "test":
        pairs = np.argwhere(apart)
        chosen = pairs[rng.integers(0, len(pairs), count)]
        return np.stack([picture(chosen[:, 0]), picture(chosen[:, 1])], axis=1)
    # In turns rather than at random, so that all kinds occur in training.
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
    """Renders scenes: images uint8 [n, BOARD, BOARD, 3] and pixels [n, BOARD, BOARD]."""
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
    """A background: a colour, a gradient or a colour with noise, float32 [BOARD, BOARD, 3]."""
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
    """Kinds, their pictures, and notes on omitted ones."""
    rows = _rows(named(folder, "captions.tsv"), ("image", f"caption_{language}"))
    phrases: dict[str, Phrase] = {}
    read: list[tuple[str, str, list[np.ndarray]]] = []
    left: dict[str, list[str]] = collections.defaultdict(list)
    seen: set[bytes] = set()
    parsed = {place: phrase(text, language) for place, _, text in rows}
    alike = collections.Counter(
        text.lower() for text in {kind.text for kind in parsed.values() if kind}
    )
    for place, file, text in rows:
        kind = parsed[place]
        if not kind:
            left[f"caption is not an article, a noun and at most {MOST_WORDS} words"].append(text)
        elif alike[kind.text.lower()] > 1:  # pictures of letters, upper and lower case
            left["captions differ in capitals only"].append(text)
        else:
            image = _picture(folder / "images" / file, place)
            scaled = [_scaled(image, length) for length in LENGTHS]
            if min((small[..., 3] > 127).sum() for small in scaled) < LEAST_PIXELS:
                left[f"fewer than {LEAST_PIXELS} opaque pixels when small"].append(text)
            elif image.tobytes() in seen:
                left["the same picture as another"].append(text)
            else:
                seen.add(image.tobytes())
                phrases[kind.text] = kind
                read.append((file, kind.text, scaled))
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
    """(FILE:LINE, image, caption) of the lines of a TSV."""
    lines = read_lines(file) or [""]
    header = lines[0].split("\t")
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file}:1: columns {', '.join(header)}; missing: {', '.join(missing)}")
    rows, places = [], {}
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
        rows.append((place, image, text))
    return rows


def _picture(file: pathlib.Path, place: str) -> np.ndarray:
    """Reads a cut-out, uint8 [height, width, 4], with a longest side of at most LARGEST.

    place: FILE:LINE, for error messages.
    """
    try:
        with opened_image(file) as image:
            if image.format != "PNG":
                raise DataError(f"{file}: {image.format}, expected a PNG")
        height, width = image_size(file)
        part = min(LARGEST / max(width, height), 1)
        pixels = read_image(file, (max(round(part * height), 1), max(round(part * width), 1), 4))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if not (pixels[..., 3] > 127).any():
        raise DataError(f"{place}: {file}: no opaque pixels")
    return pixels


def _scaled(image: np.ndarray, length: int) -> np.ndarray:
    """Scales an image to a longest side of ``length``, and crops it to its opaque part."""
    part = length / max(image.shape[:2])
    height, width = (max(round(part * side), 1) for side in image.shape[:2])
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    solid = small[..., 3] > 127
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return (
        small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else small[:0, :0]
    )
