"""Points in 2D: projections, the nearest-neighbour error, and a map with labels."""

import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT, LETTERS = 960, 800, 12
"""Size of a map and height of its letters, in pixels."""


def principal(points: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2] of points [n, dimensions].

    Signs are chosen so that the loading with the largest absolute value is positive.
    """
    centred = points - points.mean(axis=0, dtype=np.float64, keepdims=True)
    if centred.shape[1] < 2:
        return np.pad(centred, ((0, 0), (0, 2 - centred.shape[1])))
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    return centred @ (
        axes * np.sign(np.take_along_axis(axes, abs(axes).argmax(axis=0)[None], axis=0))
    )


def neighbour_error(points: np.ndarray, targets: np.ndarray) -> float:
    """The share of points [n, dimensions] whose nearest neighbour has another class.

    Raises ValueError for fewer than two points, or unless each has a target.
    """
    if len(points) < 2 or len(points) != len(targets):
        raise ValueError(
            f"{len(points)} points, {len(targets)} targets, allowed: the same number, at least two"
        )
    points = points - points.mean(axis=0, dtype=np.float64, keepdims=True)
    squares = np.square(points).sum(axis=1)
    distances = squares[:, None] - 2 * points @ points.T + squares[None]
    np.fill_diagonal(distances, np.inf)
    return float((targets[distances.argmin(axis=1)] != targets).mean())


def tsne(points: np.ndarray) -> np.ndarray:
    """t-SNE map [n, 2] of points [n, features] (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = principal(points)
    start: Any = (1e-4 / (start[:, 0].std() or 1) * start).astype(np.float32)
    with threadpool_limits(1):  # reproducible: with several threads, the order of sums varies
        return TSNE(
            perplexity=min(30, (len(points) - 1) / 3), init=start, random_state=0
        ).fit_transform(points)


def labelled_map(points: np.ndarray, names: Sequence[str], title: str) -> tuple[str, str]:
    """SVG of named points [n, 2], scaled to the map and labelled where there is room.

    Also returns a sentence on points without a label, or "".
    """
    points = _fitted(points)
    boxes = place(points, np.array([width(name) for name in names]))
    marks = []
    for name, (x, y), box in zip(names, points, boxes, strict=True):
        dot = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5" opacity="0.5">'
            f"<title>{html.escape(name)}</title></circle>"
        )
        label = ""
        if not np.isnan(box).any():
            # Fixes the length of the label: in another font it may not fit into the free space.
            size = f'textLength="{width(name):.1f}" lengthAdjust="spacingAndGlyphs"'
            label = (
                f'<text x="{box[0]:.1f}" y="{box[1] + 0.78 * LETTERS:.1f}" {size}>'
                f"{html.escape(name)}</text>"
            )
        marks.append(dot + label)
    style = f'style="min-width: {WIDTH * 0.9:.0f}px; fill: currentColor; font-size: {LETTERS}px"'
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {style} role="img" aria-label="{title}">'
        f"{''.join(marks)}</svg>"
    )
    bare = int(np.isnan(boxes).any(axis=1).sum())
    return (
        svg,
        f"  {bare} dots have no label for lack of space: hover over them." if bare else "",
    )


def width(word: str) -> float:
    """Approximate width of a word in a sans-serif font of height LETTERS, in pixels."""
    return LETTERS * sum(
        0.32 if letter in "fijlrtI'" else 0.88 if letter in "mwMW" else 0.58 for letter in word
    )


def place(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Places labels around their points [n, 2]: upper left corners [n, 2], NaN if there is no room.

    Greedy: each label takes the first position around its point where its box overlaps no other box
    and no point, and lies inside the map.
    """
    taken = np.concatenate([points - 2, points + 2], axis=1)  # boxes: left, top, right, bottom
    corners = np.full(points.shape, np.nan)
    for index, ((x, y), wide) in enumerate(zip(points, widths, strict=True)):
        tops = {"middle": y - LETTERS / 2, "above": y - LETTERS - 3, "below": y + 3}
        lefts = {"right": x + 4, "left": x - 4 - wide, "centre": x - wide / 2}
        for left, top in itertools.product(lefts, tops):
            box = np.array([lefts[left], tops[top], lefts[left] + wide, tops[top] + LETTERS])
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT
            apart = (taken[:, :2] >= box[2:]) | (taken[:, 2:] <= box[:2])
            if inside and apart.any(axis=1).all():
                corners[index] = box[:2]
                taken = np.concatenate([taken, box[None]])
                break
    return corners


def _fitted(points: np.ndarray) -> np.ndarray:
    """Scales points [n, 2] to the map, with margins for labels."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([40, LETTERS])
    return room + (points - low) / np.maximum(high - low, 1e-9) * (
        np.array([WIDTH, HEIGHT]) - 2 * room
    )
