"""Data that are generated, always the same: moving digits, tasks of memory, and images of any shape for trying out models."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.formats import MAX_BYTES, MAX_CLASSES, DataError

Table = dict[str, Any]
SEED = 2015

DIRECTIONS = {"E": (0, 1), "NE": (-1, 1), "N": (-1, 0), "NW": (-1, -1), "W": (0, -1), "SW": (1, -1), "S": (1, 0), "SE": (1, 1)}
"""What a digit moves by from frame to frame: (rows, columns)."""
FRAMES, SIZE, CLIPS, NOISE, MOST = 8, 16, 4, 12, 16


def moving_digits(digits: Mapping[str, Table], noise: int = NOISE) -> dict[str, Table]:
    """Clips whose class is the direction in which a digit moves; digits: {split: {"inputs": uint8 [n, 8, 8, 1], ...}, ...}.

    Returns {split: {"inputs": uint8 [CLIPS n, FRAMES, SIZE, SIZE, 1], "targets": int32 [CLIPS n]}, ...}: of each image of a split
    CLIPS clips, one after the other.  It starts anywhere and moves a pixel a frame along each axis of its direction; what leaves
    at one edge enters at the opposite one, so a single frame says nothing of the direction.  To each pixel a whole number from
    -noise to noise is added, all equally likely, and the sum is clipped to 0..MOST.
    """
    return {split: _clips(table["inputs"], [SEED, number], noise) for number, (split, table) in enumerate(digits.items())}


def _clips(digits: np.ndarray, seed: list[int], noise: int) -> Table:
    rng = np.random.default_rng(seed)
    count = CLIPS * len(digits)
    targets = rng.permutation(np.arange(count) % len(DIRECTIONS))
    starts = rng.integers(0, SIZE, (count, 1, 2))
    offsets = starts + np.array(list(DIRECTIONS.values()))[targets][:, None] * np.arange(FRAMES)[:, None]
    # Pixel p of a frame shows pixel p - offset of the canvas.
    pixels = (np.arange(SIZE)[:, None] - offsets[:, :, None]) % SIZE
    canvas = np.zeros((len(digits), SIZE, SIZE), np.int8)
    canvas[:, : digits.shape[1], : digits.shape[2]] = digits[..., 0]
    image = np.repeat(np.arange(len(digits)), CLIPS)[:, None, None, None]
    clips = canvas[image, pixels[:, :, :, None, 0], pixels[:, :, None, :, 1]]
    clips += rng.integers(-noise, noise, clips.shape, np.int8, endpoint=True)
    return {"inputs": clips.clip(0, MOST).astype(np.uint8)[..., None], "targets": targets.astype(np.int32)}


FORM = re.compile(r"([1-9][0-9]{,11})x([1-9][0-9]{,11})x([1-9][0-9]{,11})x([1-9][0-9]{,11})/([1-9][0-9]{,11})")
EXPECTED = "synthetic:COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES"
PATCHES, BRIGHTEST = 4, 192
BLOCK_BYTES = 2**22


def synthetic(name: str, form: str) -> tuple[Table, int]:
    """Images of the form COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES.  Raises DataError, which calls the data by their name.

    Returns {"inputs": uint8 [count, height, width, channels], "targets": int32 [count]} and the number of classes.  A class is a
    mosaic of PATCHES x PATCHES random colours below BRIGHTEST; its images are that plus noise below 256 - BRIGHTEST.  Every class
    occurs equally often, give or take one.
    """
    match = FORM.fullmatch(form)
    if not match:
        raise DataError(f"data {name!r}: expected {EXPECTED}, such as synthetic:512x224x224x3/1000")
    count, height, width, channels, classes = map(int, match.groups())
    size = math.prod((count, height, width, channels))
    if size > MAX_BYTES:
        raise DataError(f"data {name!r}: {size} bytes, allowed: {MAX_BYTES}; expected {EXPECTED}")
    if not 2 <= classes <= MAX_CLASSES:
        raise DataError(f"data {name!r}: {classes} classes, allowed: 2 to {MAX_CLASSES}; expected {EXPECTED}")
    rng = np.random.default_rng(SEED)
    targets = np.arange(count) * classes // count
    colours = rng.integers(0, BRIGHTEST, (classes, PATCHES, PATCHES, channels), np.uint8)
    images = rng.integers(0, 256 - BRIGHTEST, (count, height, width, channels), np.uint8)
    row, column = (np.arange(length) * PATCHES // length for length in (height, width))
    block = max(BLOCK_BYTES * count // size, 1)
    for start in range(0, count, block):
        images[start : start + block] += colours[targets[start : start + block]][:, row][:, :, column]
    return {"inputs": images, "targets": targets.astype(np.int32)}, classes


SEQUENCES = {"train": 50_000, "validation": 1_000, "test": 5_000}
BLANK, RECALL, COPIED = 0, 1, 10
COPY_SYMBOLS = ("blank", "recall", *"12345678")
"""What the tokens of the copy task are."""


def adding(steps: int) -> dict[str, Table]:
    """The adding problem (Hochreiter and Schmidhuber 1997, section 5.4), float32.

    Returns {split: {"inputs" [n, steps, 2], "targets" [n, 1]}, ...}.  Each step has a number, uniform in 0..1, and a mark, 0 or
    1: one in each half of the sequence is 1.  The target is the sum of the two marked numbers, whose variance is 1/6.
    """
    made = {}
    for index, (split, count) in enumerate(SEQUENCES.items()):
        rng = np.random.default_rng([SEED, index])
        numbers, marks = rng.random((count, steps), np.float32), np.zeros((count, steps), np.float32)
        halves = rng.integers(0, steps // 2, count), rng.integers(steps // 2, steps, count)
        rows = np.arange(count)
        for half in halves:
            marks[rows, half] = 1
        targets = (numbers * marks).sum(axis=1, keepdims=True)
        made[split] = {"inputs": np.stack([numbers, marks], axis=2), "targets": targets}
    return made


def copy_memory(steps: int) -> dict[str, Table]:
    """The copy task (Hochreiter and Schmidhuber 1997; Arjovsky et al. 2016, section 4.1): tokens of COPY_SYMBOLS, int32.

    COPIED symbols of 8, ``steps`` blanks of which the last is "recall", then as many blanks as symbols, where the target is the
    symbols again; elsewhere it is blank.  {split: {"inputs", "targets" [n, steps + 2 COPIED], "mask"}, ...}.  Who has forgotten
    the symbols loses COPIED log 8 / (steps + 2 COPIED) nats a step.
    """
    made = {}
    for index, (split, count) in enumerate(SEQUENCES.items()):
        rng = np.random.default_rng([SEED, index])
        symbols = rng.integers(2, len(COPY_SYMBOLS), (count, COPIED), np.int32)
        inputs = np.full((count, steps + 2 * COPIED), BLANK, np.int32)
        targets = inputs.copy()
        inputs[:, :COPIED], targets[:, -COPIED:] = symbols, symbols
        inputs[:, -COPIED - 1] = RECALL
        made[split] = {"inputs": inputs, "targets": targets, "mask": np.ones(inputs.shape, bool)}
    return made
