"""Published figures of accelerators, and predicted step times, all-reduce times and weak scaling.

Sources: https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e (peak, memory,
bandwidth, links per chip, torus); NVIDIA H100 Tensor Core GPU data sheet (SXM; without sparsity).
Links: 0.9 of the published bandwidth, one direction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evals.aot.operations import Operation

GB, TERA = 1e9, 1e12
LINK_SHARE = 0.9
"""Assumed fraction of a link's published bandwidth that is reached."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """An accelerator.

    kind: the driver's name for it.  peak: {operand type: FLOP/s} of dense matrix products.
    memory: bytes.  bandwidth: of the memory, bytes per second.
    link: bytes per second in one direction of one link to a neighbour.  hop: seconds per link.
    ring: a slice's axis forms a ring if its length is a multiple of this, otherwise a line.
    slices: of 8, 64 and 256 chips, sizes along the axes of the network.
    network: for accelerators whose slices are not a torus, bytes per second in one direction from
    each accelerator to other machines; the first slice is one machine.
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
    # On TPUs, float32 products at default precision take one bfloat16 pass.
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
        # On GPUs, float32 products at JAX's default precision use TensorFloat-32.
        peak={"bfloat16": 989.4 * TERA, "float32": 494.7 * TERA},
        memory=80 * GB,
        bandwidth=3350 * GB,
        link=LINK_SHARE * 450 * GB,
        hop=5e-6,
        slices=((8,), (64,), (256,)),
        network=LINK_SHARE * 50 * GB,
    ),
}
"""{prefix of the topology's name: Chip}; h100 for CUDA."""


def step_seconds(operations: Sequence[Operation], state: float, chip: Chip) -> float:
    """Seconds of a step on one chip, without communication: the sum of the operations' rooflines.

    Each operation takes the longer of its products at peak and its memory traffic; elementwise
    operations are assumed to be fused and free.  state: bytes of the step's arguments and results,
    which move once.
    """
    seconds = state / chip.bandwidth
    for operation in operations:
        peak = chip.peak.get(operation.dtype, chip.peak["float32"])
        seconds += operation.times * max(
            operation.products / peak, operation.bytes / chip.bandwidth
        )
    return seconds


def all_reduce_seconds(volume: float, slice_: Sequence[int], chip: Chip) -> float:
    """Seconds for ``volume`` bytes per chip: reduce-scatter, all-gather, (n - 1) / n of it each.

    In a torus all axes work at once, each on a part of the volume.  A ring uses both directions, a
    line counts as one; messages cross half a ring or a whole line.  Other networks reduce within a
    machine, then among machines, where each chip handles its part of the volume.
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
    """Predicted weak-scaling efficiency at a number of chips: time of one chip / time of all.

    The batch grows with the number of chips.  all_reduce: seconds.  apart: no overlap of
    communication.  hidden: communication overlaps with the whole backward pass, the most possible.
    compiled: only the program's asynchronous collectives overlap.
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
    """Predicts the scaling for each slice.

    step, backward: seconds on one chip.  volume: bytes to reduce; asynchronous: the part of them in
    asynchronous collectives.
    """

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
                *(efficiency(reduction, hidden) for hidden in (0, 1, share)),
            )
        )
    return rows
