"""Data augmentation on the device: random affine and elastic maps, flips and crops.

All deformations change the input position of each output pixel, so any combination is a single
bilinear resampling with repeated borders: y[p] = x[c + A (p - c) + t + d(p)].  Each example has its
own key.  Evaluation never deforms.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.settings import settle
from zoo.base import Batch

AUGMENT_STREAM = 2**31 - 1
"""Folded into an example's key, so that the model does not draw the same numbers."""
PLANAR = ("rotate", "shear", "elastic", "flip_horizontal", "flip_vertical")
"""Settings that need two spatial axes."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random deformations of images [height, width, channels] or signals [time, channels].

    Signals allow only scale, shift and crop.  Each deformation is drawn for every example at every
    step, uniformly within plus or minus the setting unless stated otherwise.
    """

    rotate: float = 0.0
    """Rotation in degrees."""
    scale: float = 0.0
    """Log scale factor, independent per axis: 0.1 means about 10 % smaller to 10 % larger."""
    shear: float = 0.0
    """Shear in degrees."""
    shift: float = 0.0
    """Translation in pixels, including fractions."""
    crop: int = 0
    """Random crop of the original size after padding by this many pixels on every side."""
    flip_horizontal: bool = False
    """Flip half of the examples, at random."""
    flip_vertical: bool = False
    elastic: float = 0.0
    """Deviation in pixels of a smooth random displacement (Simard et al. 2003: 1.4)."""
    smoothness: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the elastic displacement."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        settle(self, "augment: ")
        most = {
            "rotate": 180.0,
            "scale": 2.0,
            "shear": 80.0,
            "shift": 1e4,
            "crop": 10_000,
            "elastic": 1e4,
        }
        for field, bound in most.items():
            if not 0 <= getattr(self, field) <= bound:
                raise ValueError(
                    f"augment: {field}={getattr(self, field)!r}, allowed: 0 to {bound:g}"
                )
        if not 0.5 <= self.smoothness < math.inf:
            raise ValueError(f"augment: smoothness={self.smoothness!r}, allowed: at least 0.5")

    @property
    def active(self) -> bool:
        """Whether any deformation is enabled."""
        fields = (field.name for field in dataclasses.fields(self) if field.name != "smoothness")
        return any(getattr(self, name) for name in fields)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless these deformations apply to examples of this shape."""
        if not self.active:
            return
        if len(shape) not in (2, 3):
            raise ValueError(
                f"augment: inputs {shape}, "
                "allowed: images [height, width, channels] or signals [time, channels]"
            )
        for name in PLANAR if len(shape) == 2 else ():
            if getattr(self, name):
                raise ValueError(
                    f"augment: {name}={getattr(self, name)!r}, "
                    f"allowed for signals {shape}: scale, shift and crop"
                )


def deform(augment: Augment, inputs: Array, keys: Array) -> Array:
    """Deformed inputs, of the same shape and type.

    inputs: [batch, height, width, channels] or [batch, time, channels].  keys: [batch].
    """
    if not augment.active:
        return inputs
    augment.check(inputs.shape[1:])
    images = inputs[:, None] if inputs.ndim == 3 else inputs
    return jax.vmap(_resample)(images, _all_places(augment, images.shape[1:3], keys)).reshape(
        inputs.shape
    )


def deform_batch(augment: Augment, batch: Batch, keys: Array) -> Batch:
    """A batch with deformed inputs and, for pixel labels, deformed targets and mask.

    Targets and mask [batch, height, width] are resampled to the nearest pixel.
    """
    if not augment.active:
        return batch
    inputs, targets = batch["inputs"], batch.get("targets")
    if isinstance(inputs, dict):
        raise ValueError(
            f"augment: inputs are {', '.join(sorted(inputs))}, "
            "allowed: one array of images or signals"
        )
    deformed = {**batch, "inputs": deform(augment, inputs, keys)}
    if targets is None or targets.ndim != 3 or targets.shape != inputs.shape[:-1]:
        return deformed
    places = _all_places(augment, targets.shape[1:], keys)
    return deformed | {
        name: jax.vmap(_nearest)(batch[name], places) for name in ("targets", "mask")
    }


def _all_places(augment: Augment, space: tuple[int, ...], keys: Array) -> Array:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, AUGMENT_STREAM)
    return jax.vmap(lambda key: _places(augment, space, key))(keys)


def _places(augment: Augment, space: tuple[int, ...], key: Array) -> Array:
    """Input position of each output pixel [2, height, width]; for signals only the width varies."""
    key, noise_key = jax.random.split(key)
    draws = jax.random.uniform(key, (10,), minval=-1, maxval=1)
    angle, shear = (
        draws[0] * math.radians(augment.rotate),
        jnp.tan(draws[1] * math.radians(augment.shear)),
    )
    factors = jnp.exp(-draws[2:4] * augment.scale)
    flips = jnp.where(
        (draws[4:6] < 0) & jnp.array([augment.flip_vertical, augment.flip_horizontal]), -1.0, 1.0
    )
    shifts = draws[6:8] * augment.shift + jnp.clip(
        jnp.round(draws[8:10] * (augment.crop + 0.5)), -augment.crop, augment.crop
    )
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])
    lean = jnp.stack([jnp.array([1.0, 0.0]), jnp.stack([shear, jnp.ones(())])])
    matrix = turn @ lean * (factors * flips)[:, None]
    centre = (np.array(space, np.float32) - 1) / 2
    grid = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij")) - centre[:, None, None]
    places = jnp.einsum("ij,jhw->ihw", matrix, grid) + (centre + shifts)[:, None, None]
    if augment.elastic:
        rows, columns = (_smoothing(size, augment.smoothness) for size in space)
        noise = jax.random.normal(noise_key, (2, rows.shape[1], columns.shape[1]))
        places += augment.elastic * jnp.einsum("hi,cij,wj->chw", rows, noise, columns)
    return places


def _smoothing(size: int, smoothness: float) -> Array:
    """[size, knots]: Gaussian windows around knots one standard deviation apart.

    Rows have norm 1, so that white noise of unit variance keeps its variance.
    """
    knots = np.arange(-3 * smoothness, size + 3 * smoothness, smoothness)
    weights = np.exp(-0.5 * np.square((np.arange(size)[:, None] - knots) / smoothness))
    return jnp.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), jnp.float32)


def _nearest(labels: Array, places: Array) -> Array:
    """Labels [height, width] nearest to places [2, height, width], with repeated borders."""
    row, column = (
        jnp.clip(jnp.round(place), 0, size - 1)
        for place, size in zip(places, labels.shape, strict=True)
    )
    return labels[row.astype(jnp.int32), column.astype(jnp.int32)]


def _resample(image: Array, places: Array) -> Array:
    """Image [height, width, channels] at places [2, height, width], bilinear, repeated borders."""
    height, width, channels = image.shape
    y, x = jnp.clip(places[0], 0, height - 1), jnp.clip(places[1], 0, width - 1)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    below, beside = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    pixels = image.reshape(-1, channels)

    def at(row: Array, column: Array) -> Array:
        return jnp.take(pixels, row * width + column, axis=0, mode="clip")

    upper = at(top, left) * (1 - right) + at(top, beside) * right
    lower = at(below, left) * (1 - right) + at(below, beside) * right
    return (upper * (1 - down) + lower * down).astype(image.dtype)
