"""Scenes: objects placed on a canvas, and captions that say how they stand to each other.

A caption names all objects in order along an axis, "above" or "left of" one another.  The rule is
that of ``relation``: the axis is the one along which no two boxes overlap; if that holds for both,
the one along which the outermost centres lie farther apart.  Scenes are placed so that they do by at
least MARGIN pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.dataset import Columns
from train.tokens import Tokenizer, pieces, teacher_forcing

SEED = 2015
MARGIN = 3
RELATIONS = {"en": (" above ", " left of "), "fr": (", en dessous ", ", à sa droite ")}
"""What stands between two objects that follow each other along rows, and along columns; grammatical for any two nouns."""


class Scenes(NamedTuple):
    """Scenes as data.  sentences: {split: (("", caption), ...)}.  kinds: what ``pixels`` count.  notes: for people."""

    splits: dict[str, Columns]
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
        apart = (
            (high[:, one] <= low[:, other])
            | (high[:, other] <= low[:, one])
            | ~(there[:, one] & there[:, other])
        )
        centres = (low + high) / 2
        spread = np.where(there, centres, -np.inf).max(axis=1) - np.where(
            there, centres, np.inf
        ).min(axis=1)
        scores.append(np.where(apart.all(axis=1), spread, -1))
    found = np.stack(scores, axis=1)
    best = found.max(axis=1)
    return found.argmax(axis=1), np.where(best < 0, -1, best - np.maximum(found.min(axis=1), 0))


def caption(boxes: np.ndarray, phrases: Sequence[str], language: str = "en") -> str:
    """The caption of a scene from boxes [objects, 4] and what the objects are called, in any order."""
    axis = int(relation(boxes[None])[0][0])
    order = map(int, np.argsort(boxes[:, axis], kind="stable"))
    return RELATIONS[language][axis].join(
        phrases[index] for index in order if boxes[index, 2] > boxes[index, 0]
    )


def arrange(
    rng: np.random.Generator,
    extents: np.ndarray,
    items: np.ndarray,
    sizes: np.ndarray,
    axes: np.ndarray,
    canvas: int,
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


def say(
    phrases: Sequence[Phrase], items: np.ndarray, axes: np.ndarray, language: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Captions, and columns "phrases" and "words" of a table.  items [n, objects]: phrases in their order, or -1."""
    lengths = [len(pieces("words", phrase.text)) for phrase in phrases]
    between = [len(pieces("words", each)) for each in RELATIONS[language]]
    spans, words, captions = (
        np.zeros((*items.shape, 2), np.int32),
        np.full(items.shape, -1, np.int32),
        [],
    )
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


def tokenize(
    made: dict[str, Columns], captions: dict[str, list[str]], tokenizer: Tokenizer
) -> None:
    """Adds what is made of captions to the tables."""
    coded = {
        text: tokenizer.encode(text) for texts in captions.values() for text in dict.fromkeys(texts)
    }
    time = 1 + max(map(len, coded.values()))
    for split, texts in captions.items():
        before, targets, mask = teacher_forcing([coded[text] for text in texts], time)
        table = made[split]
        image = table.pop("image")
        made[split] = {
            "inputs": {"image": image, "target": before},
            "targets": targets,
            "mask": mask,
            **table,
        }
