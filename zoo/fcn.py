"""Fully convolutional networks: a label for every pixel.

See Long, Shelhamer, Darrell 2015; review, page 439.

A ConvNet that classifies images of one size is a filter for images of any other size: its first
dense layer is a convolution whose window is the whole last map, and the others are convolutions of
window 1.  Sliding it over the image, at all positions at once, gives a coarse map of scores.  The
scores are upsampled to the size of the image (section 3.3).  On the way, they are added to scores
computed from finer maps of the trunk by convolutions of window 1: skip connections (section 4.2).

Windows, strides and padding determine where the positions of a map lie in the image.  Maps with
different positions are aligned by linear interpolation, so no cropping is needed for any image
size.  Signals and volumes work in the same way, with one or three spatial axes.
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
"""Fraction of an example's pixels without a label."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A fully convolutional network.

    shape: of one example, channels last.  ``apply`` accepts any other size that the trunk's stages
        do not shrink below 1.
    trunk: the classifier; its shape is the window that slides over the image.  Its classes, output,
        objective and compute_dtype are ignored.
    classes: number of labels.
    skips: maps of the trunk ("conv_0", "pool_0", ...) that are also scored, from coarse to fine.
    upsampling: "learned" doubles the resolution between skips with transposed convolutions,
        initially bilinear; "fixed" stays bilinear.  The last step, up to the image, is always
        fixed.
    padding: "same" repeats the border of the trunk's last map, so that each of its positions has
        scores; "valid" scores only positions where the classifier's window fits, and positions
        farther out use the nearest scores.
    compute_dtype: of the trunk; scores are upsampled in float32.
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
        """The classifier that has these parameters."""
        return replace(self.trunk, classes=self.classes, compute_dtype=self.compute_dtype)

    @property
    def input_range(self) -> None:
        """Allowed inputs: any."""
        return None

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, shape=shape, classes=classes or self.classes)

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("targets", Targets(self.classes), likelihood=True)

    @property
    def window(self) -> Sizes:
        """Sizes of the classifier's last map."""
        return self.trunk.spaces()[-1]

    @property
    def doublings(self) -> tuple[int, ...]:
        """Number of learned transposed convolutions before each skip."""
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
    """Positions of a map in the image, along each axis.

    They are at offset + stride * index, index < size.
    """

    sizes: Sizes
    strides: tuple[float, ...]
    offsets: tuple[float, ...]

    def under(self, window: Sizes, strides: Sizes, pads: Pads) -> "Grid":
        """The grid of the centres of windows over a map with this grid."""
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
        """The grid with two positions for each one, a quarter of a stride to either side."""
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
    grid, grids = _image(space), {}
    for index, stage in enumerate(cfg.trunk.stages):
        at = stage.geometry(grid.sizes)
        grid = grids[f"conv_{index}"] = grid.under(at.window, at.strides, at.pads)
        if stage.pool:
            grid = grids[f"pool_{index}"] = grid.under(
                at.pool, at.pool_strides, ((0, 0),) * len(space)
            )
    grids[SCORES] = grid.under(cfg.window, (1,) * len(space), _head_pads(cfg, grid.sizes))
    return grids


def _holds(grids: dict[str, Grid]) -> bool:
    """Whether every map has at least one position."""
    return min(min(grid.sizes) for grid in grids.values()) >= 1


def _head_pads(cfg: Config, space: Sizes) -> Pads:
    return padding(cfg.padding, space, cfg.window, (1,) * len(space))


_stage = convnet.Stage

PRESETS: dict[str, Config] = {
    "tiny": Config(shape=(7, 6, 2), trunk=convnet.PRESETS["tiny"], classes=3, skips=("conv_0",)),
    # The window is about the size of the largest digit.
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
    """{"conv_0": ..., "dense_0": ..., "skip_conv_0": ..., "double_0": ..., ...}.

    The classifier's parameters keep their names and shapes, so that they can be initialised from a
    ConvNet's (``zoo.convnet.init``, ``zoo.parts.parameters.restore_matching``).  "skip_conv_0" is
    {"kernel" [features, classes], "bias"}, initially zero; "double_0" is
    {"kernel" [4, ..., 4, classes, classes]}, initially bilinear.
    """
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
    """Kernel [4, ..., 4, classes, classes] of a transposed convolution of stride 2.

    It interpolates each class separately.
    """
    require_integer("axes", axes)
    require_integer("classes", classes)
    line = np.array([0.25, 0.75, 0.75, 0.25])
    window = functools.reduce(np.multiply.outer, [line] * axes)
    return jnp.asarray(window[..., None, None] * np.eye(classes), float)


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, *space, channels] of any size -> logits [batch, *space, classes].

    Logits are at least float32.  Raises ValueError for sizes that the trunk would shrink below 1.
    """
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and the intermediates.

    The trunk's maps "conv_0", "pool_0", ... [batch, *space, features]; "hidden_0", ... and "scores"
    [batch, *positions, classes or units] of the sliding classifier; "with_conv_0", ... after each
    skip; "logits", "outputs" (probabilities).
    """
    logits, intermediates = _forward(cfg, params, inputs, None)
    return logits, intermediates | {"logits": logits, "outputs": jax.nn.softmax(logits)}


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
    x, intermediates = convnet.run_stages(network, params, inputs, keys, inputs.shape[1:])
    scores, hidden = _slide(cfg, params, x, keys[len(network.stages) :])
    intermediates |= hidden | {SCORES: scores}
    grid, number = grids[SCORES], 0
    for name, doublings in zip(cfg.skips, cfg.doublings, strict=True):
        for _ in range(doublings):
            scores, grid = double(params[f"double_{number}"]["kernel"], scores), grid.doubled()
            number += 1
        skipped = at_least_float32(
            dense(params[f"skip_{name}"], intermediates[name], cfg.compute_dtype)
        )
        scores, grid = _interpolate(scores, grid, grids[name]) + skipped, grids[name]
        intermediates[f"with_{name}"] = block(scores)
    return _interpolate(scores, grid, _image(space)), intermediates


def _slide(
    cfg: Config, params: Params, x: Array, keys: Sequence[Array | None]
) -> tuple[Array, dict[str, Array]]:
    """Scores [batch, *positions, classes], and the hidden layers by name.

    Applies the classifier's dense layers at every position of its trunk's last map.
    """
    network, ones, intermediates = cfg.network, (1,) * (x.ndim - 2), {}
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
            x = intermediates[f"hidden_{index}"] = activate(network.activation, x)
            x = dropout(x, network.dropout, keys[index])
    return at_least_float32(x), intermediates


def double(kernel: Array, x: Array) -> Array:
    """Transposed convolution of stride 2.

        y[2 q + t - 1] += x[q] kernel[t]     for taps t = 0 ... 3 along each axis

    x [batch, *space, in], kernel [4, ..., 4, in, out] -> y [batch, *(2 * space), out].  The border
    of x is repeated beyond it.

    Along each axis, an even output position uses taps 3 and 1, an odd one uses 2 and 0.  So one
    convolution with windows of size 2 computes all phases, and their results are interleaved.  On a
    CPU, the gradient of XLA's own transposed convolution is ten times slower.
    """
    axes = x.ndim - 2
    require_shape("kernel", kernel, (*(4,) * axes, x.shape[-1], "out"))
    phases = list(itertools.product((0, 1), repeat=axes))
    kernels = [
        kernel[tuple(slice(3 - phase, None, -2) for phase in axis_phases)] for axis_phases in phases
    ]
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
                    for phase, size in zip(axis_phases, x.shape[1:-1], strict=True)
                ),
            )
        ]
        for part, axis_phases in zip(parts, phases, strict=True)
    ]
    return interleave(cut, (2,) * axes)


def _interpolate(x: Array, grid: Grid, target: Grid) -> Array:
    """Resamples a map from one grid at the positions of another.

    The map is linear between positions, and constant beyond the outermost ones.
    """
    for axis, (size, wanted) in enumerate(zip(grid.sizes, target.sizes, strict=True)):
        places = (
            target.offsets[axis] + target.strides[axis] * np.arange(wanted) - grid.offsets[axis]
        )
        places = np.clip(places / grid.strides[axis], 0, size - 1)
        weights = np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)
        # Skip axes whose positions already agree.
        if not np.array_equal(weights, np.eye(size)):
            product = jnp.tensordot(
                jnp.asarray(weights, x.dtype), x, ((1,), (axis + 1,)), precision="highest"
            )
            x = jnp.moveaxis(product, 0, axis + 1)
    return x


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Softmax cross-entropy summed over unmasked pixels, in nats; metric "accuracy" per pixel.

    batch: inputs [batch, *space, channels]; targets (integer labels) and mask, both
        [batch, *space]; the mask is False for pixels without a label.
    """
    batch, _ = blank_padding(batch)
    logits = apply(cfg, params, batch["inputs"], key=key)
    require_shape("targets", batch["targets"], logits.shape[:-1])
    targets = batch["targets"].astype(jnp.int32)
    # Optax's cross-entropy is slow to compile for many pixels: it also takes the first of one score
    # per pixel, and XLA evaluates that gradient at compile time.
    scores = jnp.squeeze(jnp.take_along_axis(logits, targets[..., None], axis=-1), axis=-1)
    return summed(
        jax.nn.logsumexp(logits, axis=-1) - scores,
        batch["mask"],
        accuracy=jnp.argmax(logits, axis=-1) == targets,
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random labels, some of them masked, and images.

    The higher the label of a pixel, the brighter the first channel.  A fraction VOID is masked.
    """
    target_key, image_key, mask_key = jax.random.split(key, 3)
    targets = jax.random.randint(target_key, (batch_size, *cfg.shape[:-1]), 0, cfg.classes)
    image = jax.random.uniform(image_key, (batch_size, *cfg.shape))
    image = image.at[..., 0].set((targets.astype(image.dtype) + 0.5 * image[..., 0]) / cfg.classes)
    return {
        "inputs": image,
        "targets": targets,
        "mask": ~jax.random.bernoulli(mask_key, VOID, targets.shape),
    }
