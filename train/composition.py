"""Scenes: objects on a canvas, and captions that describe their relative position.

A caption names all objects in order along an axis, joined by "above" or "left of".  ``relation``
defines the axis: the one along which no two boxes overlap; if that holds for both axes, the one
along which the outermost centres are farther apart, in these scenes by at least MARGIN pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.dataset import Columns
from train.tokens import Tokenizer, pieces, teacher_forcing

SEED = 2015
MARGIN = 3
RELATIONS = {"en": (" above ", " left of "), "fr": (", en dessous ", ", à sa droite ")}
"""Words between neighbouring objects along rows and along columns; grammatical for any nouns."""


class Scenes(NamedTuple):
    """Tables of scenes.

    sentences: {split: (("", caption), ...)}.  kinds: names of the kinds of objects in ``pixels``.
    notes: for the user.
    """

    splits: dict[str, Columns]
    sentences: dict[str, tuple[tuple[str, str], ...]]
    tokenizer: Tokenizer
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


class Phrase(NamedTuple):
    """The name of an object, and the index of its noun among the tokens of the name."""

    text: str
    head: int


def relation(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axis and the margin of the relation between the objects of scenes.

    boxes [n, objects, 4].  Returns the axis [n], 0 for rows ("above"), 1 for columns ("left of"),
    and the margin [n]: the distance from the first to the last centre along the axis, minus that
    along the other axis if boxes are disjoint along it too; -1 if they overlap along both axes.
    """
    boxes = boxes.astype(np.int64)
    present = boxes[..., 2] > boxes[..., 0]
    one, other = np.triu_indices(boxes.shape[1], 1)
    scores = []
    for axis in (0, 1):
        low, high = boxes[..., axis], boxes[..., axis + 2]
        apart = (
            (high[:, one] <= low[:, other])
            | (high[:, other] <= low[:, one])
            | ~(present[:, one] & present[:, other])
        )
        centres = (low + high) / 2
        spread = np.where(present, centres, -np.inf).max(axis=1) - np.where(
            present, centres, np.inf
        ).min(axis=1)
        scores.append(np.where(apart.all(axis=1), spread, -1))
    spreads = np.stack(scores, axis=1)
    best = spreads.max(axis=1)
    return spreads.argmax(axis=1), np.where(best < 0, -1, best - np.maximum(spreads.min(axis=1), 0))


def caption(boxes: np.ndarray, phrases: Sequence[str], language: str = "en") -> str:
    """The caption of a scene from boxes [objects, 4] and the objects' names, in any order."""
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
    """Places objects at random, in order along the axis of their scene.

    extents [items, sizes, 2]: heights and widths.  items, sizes [n, objects]: indices into these;
    -1 for no object.  axes [n].
    Returns boxes [n, objects, 4], and the sizes, reduced where the objects did not fit.
    """
    present = items >= 0
    rows, counts, sizes = np.arange(len(items)), present.sum(axis=1), np.where(present, sizes, -1)
    while True:
        shapes = extents[items, sizes] * present[..., None]
        along = shapes[rows, :, axes]
        room = canvas - along.sum(axis=1) - (counts - 1)  # one pixel between neighbours
        if (room >= 0).all():
            break
        full = np.flatnonzero(room < 0)
        sizes[full, sizes[full].argmax(axis=1)] -= 1
    # Sorted random offsets plus the lengths of the objects before: all arrangements are possible.
    gaps = np.sort(np.where(present, rng.integers(0, room + 1, items.T.shape).T, canvas), axis=1)
    boxes = np.zeros((*items.shape, 4), np.int32)
    starts = np.where(present, gaps + np.cumsum(along + 1, axis=1) - (along + 1), 0)
    across = shapes[rows, :, 1 - axes]
    for axis in (0, 1):
        selected = axes == axis
        boxes[selected, :, axis], boxes[selected, :, axis + 2] = (
            starts[selected],
            (starts + along)[selected],
        )
    # Positions across are drawn again until the axis of the relation is the wanted one.
    open_ = rows
    while len(open_):
        other = 1 - axes[open_]
        drawn = np.where(present[open_], rng.integers(0, canvas + 1 - across[open_]), 0)
        for axis in (0, 1):
            selected = other == axis
            boxes[open_[selected], :, axis] = drawn[selected]
            boxes[open_[selected], :, axis + 2] = (drawn + across[open_])[selected]
        axis, lead = relation(boxes[open_])
        open_ = open_[(counts[open_] > 1) & ((axis != axes[open_]) | (lead < MARGIN))]
    return boxes, sizes


def say(
    phrases: Sequence[Phrase], items: np.ndarray, axes: np.ndarray, language: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Captions, and the columns "phrases" and "words".

    items [n, objects]: indices into phrases, in the order of the caption; -1 for no object.
    """
    lengths = [len(pieces("words", phrase.text)) for phrase in phrases]
    between = [len(pieces("words", text)) for text in RELATIONS[language]]
    spans, words, captions = (
        np.zeros((*items.shape, 2), np.int32),
        np.full(items.shape, -1, np.int32),
        [],
    )
    for row, (row_items, axis) in enumerate(zip(items.tolist(), axes.tolist(), strict=True)):
        place, texts = 0, []
        for index, item in enumerate(row_items):
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
    """Replaces "image" by inputs, targets and mask in the tables ``made``."""
    coded = {
        text: tokenizer.encode(text) for texts in captions.values() for text in dict.fromkeys(texts)
    }
    time = 1 + max(map(len, coded.values()))
    for split, texts in captions.items():
        decoder_inputs, targets, mask = teacher_forcing([coded[text] for text in texts], time)
        table = made[split]
        image = table.pop("image")
        made[split] = {
            "inputs": {"image": image, "target": decoder_inputs},
            "targets": targets,
            "mask": mask,
            **table,
        }
