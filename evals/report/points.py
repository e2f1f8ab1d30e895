"""Points in the plane: projections, the error of nearest neighbours, and a map with labels."""

import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT, LETTERS = 960, 800, 12
"""Size of a map, and the height of its letters: pixels."""


def principal(points: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2] of points [n, dimensions]; signs so that the largest loading is positive."""
    centred = points - points.mean(axis=0, dtype=np.float64, keepdims=True)
    if centred.shape[1] < 2:
        return np.pad(centred, ((0, 0), (0, 2 - centred.shape[1])))
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    return centred @ (
        axes * np.sign(np.take_along_axis(axes, abs(axes).argmax(axis=0)[None], axis=0))
    )


def neighbour_error(points: np.ndarray, targets: np.ndarray) -> float:
    """The share of points [n, dimensions] whose nearest other one is of another class.  Raises ValueError for less than two."""
    if len(points) < 2 or len(points) != len(targets):
        raise ValueError(
            f"{len(points)} points, {len(targets)} targets, allowed: as many, at least two"
        )
    points = points - points.mean(axis=0, dtype=np.float64, keepdims=True)
    squares = np.square(points).sum(axis=1)
    distances = squares[:, None] - 2 * points @ points.T + squares[None]
    np.fill_diagonal(distances, np.inf)
    return float((targets[distances.argmin(axis=1)] != targets).mean())


def tsne(points: np.ndarray) -> np.ndarray:
    """Points [n, features] as a map [n, 2] (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = principal(points)
    start: Any = (1e-4 / (start[:, 0].std() or 1) * start).astype(np.float32)
    with threadpool_limits(1):  # several threads add up in another order every time
        return TSNE(
            perplexity=min(30, (len(points) - 1) / 3), init=start, random_state=0
        ).fit_transform(points)


def labelled_map(points: np.ndarray, names: Sequence[str], title: str) -> tuple[str, str]:
    """SVG of named points [n, 2], scaled to the map, with labels where there is room; and a sentence on those without, or ""."""
    points = _fitted(points)
    boxes = place(points, np.array([width(name) for name in names]))
    marks = []
    for name, (x, y), box in zip(names, points, boxes, strict=True):
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5" opacity="0.5"><title>{html.escape(name)}</title></circle>'
        label = ""
        if not np.isnan(box).any():
            # The length is stated, as in another font the label would take more room than is free.
            size = f'textLength="{width(name):.1f}" lengthAdjust="spacingAndGlyphs"'
            label = f'<text x="{box[0]:.1f}" y="{box[1] + 0.78 * LETTERS:.1f}" {size}>{html.escape(name)}</text>'
        marks.append(dot + label)
    style = f'style="min-width: {WIDTH * 0.9:.0f}px; fill: currentColor; font-size: {LETTERS}px"'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {style} role="img" aria-label="{title}">{"".join(marks)}</svg>'
    bare = int(np.isnan(boxes).any(axis=1).sum())
    return (
        svg,
        f"  {bare} dots have no label, as there is no room for it: point at them." if bare else "",
    )


def width(word: str) -> float:
    """Of a word in a usual sans-serif font of LETTERS' height, in pixels."""
    return LETTERS * sum(
        0.32 if letter in "fijlrtI'" else 0.88 if letter in "mwMW" else 0.58 for letter in word
    )


def place(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Where labels go beside their points [n, 2]: the left upper corners [n, 2], nan for those without room.

    In turn each takes the first free place around its point: no box overlaps another or a point, or leaves the map.
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
    """Points [n, 2] scaled to the map, with room for labels at its edges."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([40, LETTERS])
    return room + (points - low) / np.maximum(high - low, 1e-9) * (
        np.array([WIDTH, HEIGHT]) - 2 * room
    )
