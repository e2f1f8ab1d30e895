"""Published numbers of accelerators, and what they predict: the time of a step, of an all-reduce, and weak scaling.

Sources: https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e (peak, memory, bandwidth, links per chip, torus);
NVIDIA H100 Tensor Core GPU data sheet (SXM; without sparsity).  Links: 0.9 of the published bandwidth, one direction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evals.aot.operations import Operation

GB, TERA = 1e9, 1e12
LINK_SHARE = 0.9
"""What is assumed to be reached of a link's published bandwidth: an assumption."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """An accelerator.

    kind: as its driver names it.  peak: dense products, floating-point operations a second, by element type of the operands.
    memory: bytes.  bandwidth: of the memory, bytes a second.
    link: bytes a second in one direction of one link to a neighbour.  hop: seconds that a message needs for one.
    ring: an axis of a slice whose length is a multiple of this closes to a ring; a shorter one is a line.
    slices: of 8, 64 and 256 chips, sizes along the axes of the network.
    network: for accelerators whose slices are not a torus, bytes a second in one direction from each to those of other machines;
    a machine has as many as the first slice.
    """

    kind: str
    peak: dict[str, float]
    memory: float
    bandwidth: float
    link: float
    hop: float = 1e-6
    ring: int = 1
    slices: tuple[tuple[int, ...], ...]
    network: float | None = None


_PLANE = ((2, 4), (8, 8), (16, 16))
_CUBE = ((2, 2, 2), (4, 4, 4), (4, 8, 8))


def _tpu(
    kind: str, tera: float, memory: float, bandwidth: float, link: float, ring: int, slices: tuple
) -> Chip:
    # The default precision of float32 products on a TPU is one pass in bfloat16.
    peak = {"bfloat16": tera * TERA, "float32": tera * TERA}
    return Chip(
        kind=kind,
        peak=peak,
        memory=memory,
        bandwidth=bandwidth * GB,
        link=LINK_SHARE * link * GB,
        ring=ring,
        slices=slices,
    )


CHIPS = {
    "v4": _tpu("TPU v4", 275, 32 * 2**30, 1200, 50, 4, _CUBE),
    "v5e": _tpu("TPU v5 lite", 197, 16 * GB, 819, 50, 16, _PLANE),
    "v5p": _tpu("TPU v5", 459, 95 * 2**30, 2765, 100, 4, _CUBE),
    "v6e": _tpu("TPU v6 lite", 918, 32 * GB, 1638, 100, 16, _PLANE),
    "h100": Chip(
        kind="NVIDIA H100 80GB HBM3",
        # JAX's default precision of float32 products is TensorFloat-32 there.
        peak={"bfloat16": 989.4 * TERA, "float32": 494.7 * TERA},
        memory=80 * GB,
        bandwidth=3350 * GB,
        link=LINK_SHARE * 450 * GB,
        hop=5e-6,
        slices=((8,), (64,), (256,)),
        network=LINK_SHARE * 50 * GB,
    ),
}
"""By the name that a topology begins with; h100 for CUDA."""


def step_seconds(operations: Sequence[Operation], state: float, chip: Chip) -> float:
    """A step on one chip, without communication: the roofline of each operation, one after the other.

    Each takes as long as its products at peak, or its bytes, whichever is longer; elementwise operations are taken to be fused
    with them and free.  state: bytes of the arguments and results of the step, which move once.
    """
    seconds = state / chip.bandwidth
    for each in operations:
        peak = chip.peak.get(each.dtype, chip.peak["float32"])
        seconds += each.times * max(each.products / peak, each.bytes / chip.bandwidth)
    return seconds


def all_reduce_seconds(volume: float, slice_: Sequence[int], chip: Chip) -> float:
    """Of ``volume`` bytes on each chip: a reduce-scatter and an all-gather, each moving (n - 1) / n of it.

    In a torus all axes work at once, each with a part of the volume: a ring in both directions, a line as in one, and messages
    cross half a ring or a whole line.  Otherwise first within a machine, then among machines, each chip with its part of the
    volume.
    """
    if chip.network is not None:
        inside = min(math.prod(slice_), chip.slices[0][0])
        machines = math.prod(slice_) // inside
        return _exchange(volume, inside, chip.link, chip.hop * math.log2(inside)) + _exchange(
            volume / inside, machines, chip.network, chip.hop * math.log2(machines)
        )
    axes = [length for length in slice_ if length > 1]
    rings = [length % chip.ring == 0 for length in axes]
    rate = sum(chip.link * (2 if ring else 1) for ring in rings)
    hops = sum(
        length // 2 if ring else length - 1 for length, ring in zip(axes, rings, strict=True)
    )
    return _exchange(volume, math.prod(axes), rate, chip.hop * hops)


def _exchange(volume: float, count: int, rate: float, latency: float) -> float:
    return 2 * (volume * (count - 1) / count / rate + latency) if count > 1 else 0.0


class Scaling(NamedTuple):
    """Predicted weak scaling at a number of chips: the time of one chip over that of these, whose batch is larger by as much.

    apart: communication after computation.  hidden: the most that can be behind it, which is the backward pass.
    compiled: what the program's schedule allows: only its asynchronous collectives are hidden.
    """

    chips: int
    all_reduce: float
    apart: float
    hidden: float
    compiled: float


def scaling(
    step: float,
    backward: float,
    volume: float,
    asynchronous: float,
    chip: Chip,
    slices: Sequence[Sequence[int]],
) -> list[Scaling]:
    """step, backward: seconds on one chip.  volume: bytes to be reduced; asynchronous: of these, in asynchronous collectives."""

    def efficiency(reduction: float, share: float) -> float:
        return step / (step + reduction - min(share * reduction, backward))

    rows = []
    for slice_ in slices:
        reduction = all_reduce_seconds(volume, slice_, chip)
        share = asynchronous / volume if volume else 0
        rows.append(
            Scaling(
                math.prod(slice_),
                reduction,
                *(efficiency(reduction, each) for each in (0, 1, share)),
            )
        )
    return rows
