"""Fully convolutional networks: a label for every pixel (Long, Shelhamer, Darrell 2015; review, page 439).

A ConvNet that classifies images of one size is a filter for images of any other: its first dense layer is a convolution whose
window is the whole last map, the others are convolutions of window 1.  So it is slid over the image, all positions at once, and
gives a coarse map of scores.  These go up again to the size of the image (section 3.3), and on the way finer maps of the trunk,
scored by convolutions of window 1, are added to them: skips (section 4.2).

Where a map's positions lie in the image follows from windows, strides and padding.  Maps whose positions differ are brought
together by linear interpolation between positions, so nothing has to be cropped by rule of thumb, whatever the size of the image.
Everything holds for signals and volumes as well, along one or three spatial axes.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo import convnet
from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding, block
from zoo.parts.checking import require, require_integer, require_shape
from zoo.parts.config import PositiveInt, at_least, static
from zoo.parts.convolution import Pads, Sizes, convolve, interleave, output_sizes, padding
from zoo.parts.layers import (
    ComputeDtype,
    activate,
    at_least_float32,
    conv,
    dense,
    dropout,
    split_keys,
    summed,
)
from zoo.parts.pooling import pool

VOID = 0.1
"""Part of an example's pixels that have no label."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A fully convolutional network.

    shape: of one example, channels last.  ``apply`` takes any other size that the trunk's stages do not shrink below 1.
    trunk: the classifier, whose shape is the window that is slid over the image; its classes, output, objective and compute_dtype
        are not looked at.
    classes: number of labels.
    skips: maps of the trunk ("conv_0", "pool_0", ...) that are scored too, each of them finer than the one before.
    upsampling: "learned" doubles the scores' resolution between skips by transposed convolutions, at first bilinear; "fixed"
        stays bilinear.  Up to the image from the last skip it is always fixed.
    padding: "same" repeats the border of the trunk's last map, so that each of its positions has scores; "valid" scores only
        those that the classifier's window fits around, and what lies farther out takes the nearest ones'.
    compute_dtype: of the trunk; scores go up in float32.
    """

    shape: Annotated[tuple[int, ...], at_least(2)]
    trunk: convnet.Config
    classes: PositiveInt
    skips: tuple[str, ...] = ()
    upsampling: Literal["learned", "fixed"] = "learned"
    padding: Literal["same", "valid"] = "same"
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require(isinstance(self.trunk, convnet.Config), self, "trunk", "a zoo.convnet.Config")
        fits = len(self.shape) == len(self.trunk.shape) and self.shape[-1] == self.trunk.shape[-1]
        require(fits, self, "shape", f"as many axes and channels as the trunk's {self.trunk.shape}")
        grids = _grids(self, self.shape[:-1])
        require(_holds(grids), self, "shape", "sizes that the trunk does not shrink below 1")
        maps = list(grids)[:-1]
        skips = tuple(self.skips) if isinstance(self.skips, list | tuple) else (self.skips,)
        places = [maps.index(name) if name in maps else len(maps) for name in skips]
        ordered = places == sorted(set(places), reverse=True) and len(maps) not in places
        require(ordered, self, "skips", f"some of {', '.join(reversed(maps))}, in this order")
        object.__setattr__(self, "skips", skips)

    @property
    def network(self) -> convnet.Config:
        """The classifier whose parameters these are."""
        return replace(self.trunk, classes=self.classes, compute_dtype=self.compute_dtype)

    @property
    def input_range(self) -> None:
        """What inputs must lie in: anything."""
        return None

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, shape=shape, classes=classes or self.classes)

    @property
    def outputs(self) -> Outputs:
        """What the outputs are, and the loss."""
        return Outputs("targets", Targets(self.classes), likelihood=True)

    @property
    def window(self) -> Sizes:
        """Sizes of the trunk's last map in the classifier."""
        return self.trunk.spaces()[-1]

    @property
    def doublings(self) -> tuple[int, ...]:
        """Learned transposed convolutions before each skip."""
        grids = _grids(self, self.shape[:-1])
        hops = itertools.pairwise(grids[name].strides for name in (SCORES, *self.skips))
        ratios = (
            min(coarse / fine for coarse, fine in zip(*strides, strict=True)) for strides in hops
        )
        return tuple(
            int(math.log2(max(ratio, 1))) if self.upsampling == "learned" else 0 for ratio in ratios
        )


SCORES = "scores"


class Grid(NamedTuple):
    """Where the positions of a map lie in the image, along each axis: at offset + stride * index, index < size."""

    sizes: Sizes
    strides: tuple[float, ...]
    offsets: tuple[float, ...]

    def under(self, window: Sizes, strides: Sizes, pads: Pads) -> "Grid":
        """That of the middles of windows over a map of this grid."""
        shifts = ((taps - 1) / 2 - low for taps, (low, _) in zip(window, pads, strict=True))
        return Grid(
            output_sizes(self.sizes, window, strides, pads),
            tuple(old * new for old, new in zip(self.strides, strides, strict=True)),
            tuple(
                start + stride * shift
                for start, stride, shift in zip(self.offsets, self.strides, shifts, strict=True)
            ),
        )

    def doubled(self) -> "Grid":
        """Two positions for each, a quarter of a stride to either side."""
        return Grid(
            tuple(2 * size for size in self.sizes),
            tuple(stride / 2 for stride in self.strides),
            tuple(
                start - stride / 4 for start, stride in zip(self.offsets, self.strides, strict=True)
            ),
        )


def _image(space: Sizes) -> Grid:
    return Grid(space, (1.0,) * len(space), (0.0,) * len(space))


def _grids(cfg: Config, space: Sizes) -> dict[str, Grid]:
    """Grids of the trunk's maps by name, and of the scores, for images of this size."""
    grid, found = _image(space), {}
    for index, stage in enumerate(cfg.trunk.stages):
        at = stage.geometry(grid.sizes)
        grid = found[f"conv_{index}"] = grid.under(at.window, at.strides, at.pads)
        if stage.pool:
            grid = found[f"pool_{index}"] = grid.under(
                at.pool, at.pool_strides, ((0, 0),) * len(space)
            )
    found[SCORES] = grid.under(cfg.window, (1,) * len(space), _head_pads(cfg, grid.sizes))
    return found


def _holds(grids: dict[str, Grid]) -> bool:
    """Whether every map has a position."""
    return min(min(grid.sizes) for grid in grids.values()) >= 1


def _head_pads(cfg: Config, space: Sizes) -> Pads:
    return padding(cfg.padding, space, cfg.window, (1,) * len(space))


_stage = convnet.Stage

PRESETS: dict[str, Config] = {
    "tiny": Config(shape=(7, 6, 2), trunk=convnet.PRESETS["tiny"], classes=3, skips=("conv_0",)),
    # The window is about as large as the largest digit.
    "digit_scenes": Config(
        shape=(48, 48, 1),
        trunk=convnet.Config(
            shape=(24, 24, 1),
            stages=(
                _stage(features=24, kernel=(5,), pool="max"),
                _stage(features=48, pool="max"),
                _stage(features=96, pool="max"),
            ),
            dense=(128,),
        ),
        classes=11,
        skips=("pool_1", "pool_0", "conv_0"),
    ),
    "stamps": Config(
        shape=(64, 64, 3),
        trunk=convnet.Config(
            shape=(32, 32, 3),
            stages=(
                _stage(features=24, pool="max"),
                _stage(features=48, pool="max"),
                _stage(features=96, pool="max"),
                _stage(features=96),
            ),
            dense=(192,),
        ),
        classes=16,
        skips=("pool_1", "pool_0", "conv_0"),
    ),
    # Long et al. 2015: FCN-8s on VGG-16.
    "vgg16": Config(
        shape=(512, 512, 3), trunk=convnet.PRESETS["vgg16"], classes=21, skips=("pool_9", "pool_6")
    ),
}


def init(cfg: Config, key: Array) -> Params:
    """{"conv_0": ..., "dense_0": ..., ...: see ``zoo.convnet.init``; "skip_conv_0": {"kernel" [features, classes], "bias"}, ...;
    "double_0": {"kernel" [4, ..., 4, classes, classes]}, ...}, of which skips start at zero and doublings are bilinear.

    The classifier's parameters keep their names and shapes, so that its weights are these (``zoo.parts.parameters.restore_matching``).
    """  # fmt: skip
    params = convnet.init(cfg.network, key)
    features = {
        f"{kind}_{index}": stage.features
        for index, stage in enumerate(cfg.trunk.stages)
        for kind in ("conv", "pool")
    }
    for name in cfg.skips:
        params[f"skip_{name}"] = {
            "kernel": jnp.zeros((features[name], cfg.classes)),
            "bias": jnp.zeros(cfg.classes),
        }
    for index in range(sum(cfg.doublings)):
        params[f"double_{index}"] = {"kernel": bilinear(len(cfg.shape) - 1, cfg.classes)}
    return params


def bilinear(axes: int, classes: int) -> Array:
    """Kernel [4, ..., 4, classes, classes] of a transposed convolution of stride 2 that interpolates each class by itself."""
    require_integer("axes", axes)
    require_integer("classes", classes)
    line = np.array([0.25, 0.75, 0.75, 0.25])
    window = functools.reduce(np.multiply.outer, [line] * axes)
    return jnp.asarray(window[..., None, None] * np.eye(classes), float)


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, *space, channels] of any size -> logits [batch, *space, classes] of each pixel, at least float32.

    Raises ValueError for sizes that the trunk would shrink below 1.
    """
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and the trunk's maps "conv_0", "pool_0", ... [batch, *space, features]; "hidden_0", ... and "scores", those of the
    classifier slid over the image [batch, *positions, classes]; "with_conv_0", ... after each skip; "logits", "outputs"
    (probabilities).
    """  # fmt: skip
    logits, seen = _forward(cfg, params, inputs, None)
    return logits, seen | {"logits": logits, "outputs": jax.nn.softmax(logits)}


def _forward(
    cfg: Config, params: Params, inputs: Array, key: Array | None
) -> tuple[Array, dict[str, Array]]:
    space, network = inputs.shape[1:-1], cfg.network
    require_shape("inputs", inputs, ("batch", *["any"] * (len(cfg.shape) - 1), cfg.shape[-1]))
    grids = _grids(cfg, space)
    if not _holds(grids):
        raise ValueError(
            f"inputs: shape {inputs.shape}, expected sizes that the trunk does not shrink below 1"
        )
    keys = split_keys(key, len(network.stages) + len(network.dense))
    x, seen = convnet.run_stages(network, params, inputs, keys, inputs.shape[1:])
    scores, hidden = _slide(cfg, params, x, keys[len(network.stages) :])
    seen |= hidden | {SCORES: scores}
    grid, number = grids[SCORES], 0
    for name, doublings in zip(cfg.skips, cfg.doublings, strict=True):
        for _ in range(doublings):
            scores, grid = double(params[f"double_{number}"]["kernel"], scores), grid.doubled()
            number += 1
        more = at_least_float32(dense(params[f"skip_{name}"], seen[name], cfg.compute_dtype))
        scores, grid = _interpolate(scores, grid, grids[name]) + more, grids[name]
        seen[f"with_{name}"] = block(scores)
    return _interpolate(scores, grid, _image(space)), seen


def _slide(
    cfg: Config, params: Params, x: Array, keys: Sequence[Array | None]
) -> tuple[Array, dict[str, Array]]:
    """The classifier's dense layers at every position of its trunk's last map: scores [batch, *positions, classes]."""
    network, ones, seen = cfg.network, (1,) * (x.ndim - 2), {}
    pads = _head_pads(cfg, x.shape[1:-1])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge") if any(map(any, pads)) else x
    none = ((0, 0),) * len(ones)
    if network.global_pool:
        x = pool(x, network.global_pool, cfg.window, ones)
    for index in range(len(network.dense) + 1):
        layer = params[f"dense_{index}"]
        if index == 0 and not network.global_pool:
            kernel = layer["kernel"].reshape(*cfg.window, x.shape[-1], -1)
            x = conv({**layer, "kernel": kernel}, x, ones, none, cfg.compute_dtype)
        else:
            x = dense(layer, x, cfg.compute_dtype)
        if index < len(network.dense):
            x = seen[f"hidden_{index}"] = activate(network.activation, x)
            x = dropout(x, network.dropout, keys[index])
    return at_least_float32(x), seen


def double(kernel: Array, x: Array) -> Array:
    """Transposed convolution of stride 2: x [batch, *space, in], kernel [4, ..., 4, in, out] -> [batch, *(2 * space), out].

        y[2 q + p + t - 1] += x[q] kernel[t]     for taps t = 0 ... 3 along each axis, the border of x repeated beyond it

    Of the taps, a result at an even place sees 3 and 1, at an odd place 2 and 0: so this is one convolution with windows of 2
    for all these phases, whose results are then interleaved.  On a CPU the gradient of XLA's own is ten times slower.
    """
    axes = x.ndim - 2
    require_shape("kernel", kernel, (*(4,) * axes, x.shape[-1], "out"))
    phases = list(itertools.product((0, 1), repeat=axes))
    kernels = [kernel[tuple(slice(3 - phase, None, -2) for phase in each)] for each in phases]
    around = jnp.pad(x, ((0, 0), *[(1, 1)] * axes, (0, 0)), mode="edge")
    parts = jnp.split(
        convolve(around, jnp.concatenate(kernels, axis=-1).astype(x.dtype)), len(phases), axis=-1
    )
    cut = [
        part[
            (
                slice(None),
                *(
                    slice(phase, phase + size)
                    for phase, size in zip(each, x.shape[1:-1], strict=True)
                ),
            )
        ]
        for part, each in zip(parts, phases, strict=True)
    ]
    return interleave(cut, (2,) * axes)


def _interpolate(x: Array, grid: Grid, target: Grid) -> Array:
    """A map on one grid, seen at the positions of another: linear between positions, the nearest one's value beyond them."""
    for axis, (size, wanted) in enumerate(zip(grid.sizes, target.sizes, strict=True)):
        places = (
            target.offsets[axis] + target.strides[axis] * np.arange(wanted) - grid.offsets[axis]
        )
        places = np.clip(places / grid.strides[axis], 0, size - 1)
        weights = np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)
        if not np.array_equal(weights, np.eye(size)):
            product = jnp.tensordot(
                jnp.asarray(weights, x.dtype), x, ((1,), (axis + 1,)), precision="highest"
            )
            x = jnp.moveaxis(product, 0, axis + 1)
    return x


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Softmax cross-entropy summed over unmasked pixels, in nats; metric "accuracy" of a pixel.

    batch: inputs [batch, *space, channels]; targets, labels (integers), and mask [batch, *space]: False where there is none.
    """
    batch, _ = blank_padding(batch)
    logits = apply(cfg, params, batch["inputs"], key=key)
    require_shape("targets", batch["targets"], logits.shape[:-1])
    targets = batch["targets"].astype(jnp.int32)
    # Optax's takes the first of one score for each pixel besides, whose gradient XLA evaluates while it compiles: slow for many.
    scores = jnp.squeeze(jnp.take_along_axis(logits, targets[..., None], axis=-1), axis=-1)
    return summed(
        jax.nn.logsumexp(logits, axis=-1) - scores,
        batch["mask"],
        accuracy=jnp.argmax(logits, axis=-1) == targets,
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): nothing is carried."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random labels, of which VOID are masked, and images whose first channel is brighter the higher the label."""
    target_key, image_key, mask_key = jax.random.split(key, 3)
    targets = jax.random.randint(target_key, (batch_size, *cfg.shape[:-1]), 0, cfg.classes)
    image = jax.random.uniform(image_key, (batch_size, *cfg.shape))
    image = image.at[..., 0].set((targets.astype(image.dtype) + 0.5 * image[..., 0]) / cfg.classes)
    return {
        "inputs": image,
        "targets": targets,
        "mask": ~jax.random.bernoulli(mask_key, VOID, targets.shape),
    }
