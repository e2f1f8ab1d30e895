"""moving_digits: clips [8, 16, 16, 1] of the embedded digits; the class is the direction of motion.

Four clips per digit, each moving in one of 8 directions: 5,588 train, 400 validation and 1,200
test clips.  A digit stays in its split.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from train.data import digits as embedded
from train.data.base import Finder, Form, Source, just
from train.dataset import Columns, Dataset
from train.tasks import Classification

SEED = 2015
DIRECTIONS = {
    "E": (0, 1),
    "NE": (-1, 1),
    "N": (-1, 0),
    "NW": (-1, -1),
    "W": (0, -1),
    "SW": (1, -1),
    "S": (1, 0),
    "SE": (1, 1),
}
"""Motion from frame to frame in pixels: (rows, columns)."""
FRAMES, SIZE, CLIPS, NOISE, MOST = 8, 16, 4, 12, 16


def moving_digits(digits: Mapping[str, Any], noise: int = NOISE) -> dict[str, Columns]:
    """Clips whose class is the direction in which a digit moves.

    digits: {split: {"inputs": uint8 [n, 8, 8, 1], ...}, ...}.
    Returns {split: {"inputs": uint8 [CLIPS n, FRAMES, SIZE, SIZE, 1], "targets": int32 [CLIPS n]},
    ...}, with CLIPS consecutive clips per image.  A digit starts at a random position and moves one
    pixel per frame along each axis of its direction.  It wraps around at the edges, so a single
    frame does not reveal the direction.  Uniform integer noise from -noise to noise is added to
    each pixel, and the sum is clipped to 0..MOST.
    """
    return {
        split: _clips(table["inputs"], [SEED, number], noise)
        for number, (split, table) in enumerate(digits.items())
    }


def _clips(digits: np.ndarray, seed: list[int], noise: int) -> Columns:
    rng = np.random.default_rng(seed)
    count = CLIPS * len(digits)
    targets = rng.permutation(np.arange(count) % len(DIRECTIONS))
    starts = rng.integers(0, SIZE, (count, 1, 2))
    offsets = (
        starts + np.array(list(DIRECTIONS.values()))[targets][:, None] * np.arange(FRAMES)[:, None]
    )
    # Pixel p of a frame shows pixel p - offset of the canvas.
    pixels = (np.arange(SIZE)[:, None] - offsets[:, :, None]) % SIZE
    canvas = np.zeros((len(digits), SIZE, SIZE), np.int8)
    canvas[:, : digits.shape[1], : digits.shape[2]] = digits[..., 0]
    image = np.repeat(np.arange(len(digits)), CLIPS)[:, None, None, None]
    clips = canvas[image, pixels[:, :, :, None, 0], pixels[:, :, None, :, 1]]
    clips += rng.integers(-noise, noise, clips.shape, np.int8, endpoint=True)
    return {
        "inputs": clips.clip(0, MOST).astype(np.uint8)[..., None],
        "targets": targets.astype(np.int32),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """No options."""

    kind: ClassVar[str] = "moving_digits"

    def __str__(self) -> str:
        return "moving_digits"


FORMS = {"moving_digits": Form("moving_digits", "clips of moving digits, embedded", just(Config()))}


def load(cfg: Config, find: Finder) -> Dataset:
    """See ``moving_digits``."""
    digits = embedded.load(embedded.Config(), find).splits
    task = Classification(tuple(DIRECTIONS))
    return Dataset(str(cfg), moving_digits(digits), task, (0.0, float(MOST)))
