"""Data augmentation on the device: random affine and elastic maps, flips, crops and masks.

All deformations change the input position of each output pixel, so any combination is a single
bilinear resampling with repeated borders: y[p] = x[c + A (p - c) + t + d(p)].  Each example has its
own key.  Evaluation never deforms.

Recordings, {"frames" [batch, time, bands], "lengths"}, are resampled over time, which changes their
length, and over bands; then bands and stretches of time are masked (SpecAugment, Park et al. 2019,
section 2).
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
MASK_STREAM = 2**31 - 2
"""The same, for masks."""
OF_IMAGES = (
    "rotate", "scale", "shear", "shift", "crop", "flip_horizontal", "flip_vertical", "elastic",
)  # fmt: skip
OF_SIGNALS = ("scale", "shift", "crop", "mask_bands", "mask_frames")
OF_RECORDINGS = ("scale", "shift_bands", "mask_bands", "mask_frames")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random deformations of images [height, width, channels] or signals [time, channels].

    Also of recordings, see the module.  Signals allow only scale, shift, crop and masks, recordings
    only scale (their speed), shift_bands and masks.  Each deformation is drawn for every example at
    every step, uniformly within plus or minus the setting unless stated
    otherwise.
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
    shift_bands: float = 0.0
    """Translation of a recording's spectra in bands, including fractions."""
    mask_bands: int = 0
    """Most bands or channels in a masked range, which becomes the mean (SpecAugment's F)."""
    mask_frames: int = 0
    """Most time steps in a masked stretch (SpecAugment's T)."""
    masks: int = 2
    """Number of masked ranges of each kind."""

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
            "shift_bands": 1e4,
            "mask_bands": 10_000,
            "mask_frames": 10_000,
            "masks": 100,
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
        fields = {field.name for field in dataclasses.fields(self)} - {"smoothness", "masks"}
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
        if len(shape) == 2:
            self.require(f"signals {shape}", "scale, shift, crop and masks", *OF_SIGNALS)
        else:
            self.require(f"images {shape}", "anything but masks", *OF_IMAGES)

    def require(self, what: str, allowed: str, *names: str) -> None:
        """Raises ValueError if a deformation is enabled that is not one of ``names``."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in (*names, "smoothness", "masks") and value:
                raise ValueError(f"augment: {field.name}={value!r}, allowed for {what}: {allowed}")


def deform(augment: Augment, inputs: Array, keys: Array) -> Array:
    """Deformed inputs, of the same shape and type.

    inputs: [batch, height, width, channels] or [batch, time, channels].  keys: [batch].
    """
    if not augment.active:
        return inputs
    augment.check(inputs.shape[1:])
    images = inputs[:, None] if inputs.ndim == 3 else inputs
    resampled = jax.vmap(_resample)(images, _all_places(augment, images.shape[1:3], keys)).reshape(
        inputs.shape
    )
    if inputs.ndim == 4:
        return resampled
    return _masked(augment, resampled, jnp.full(len(inputs), inputs.shape[1]), keys)


def deform_recordings(
    augment: Augment, frames: Array, lengths: Array, keys: Array
) -> tuple[Array, Array]:
    """Deformed recordings, of the same shape and type, and their lengths.

    frames: [batch, time, bands], valid up to lengths [batch], integers.  A recording is slowed down
    to at most the length of the array.
    """
    if not augment.active:
        return frames, lengths
    augment.require("recordings", "scale, shift_bands and masks", *OF_RECORDINGS)
    time, bands = frames.shape[1:]

    def places(length: Array, key: Array) -> tuple[Array, Array]:
        speed, shift = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        wanted = jnp.round(length * jnp.exp(speed * augment.scale)).astype(lengths.dtype)
        after = jnp.clip(wanted, jnp.minimum(length, 1), time)
        # Output frame t shows the centre of the same part of the recording.
        moment = (jnp.arange(time) + 0.5) * (length / jnp.maximum(after, 1)) - 0.5
        moment = jnp.clip(moment, 0, jnp.maximum(length - 1, 0))
        band = jnp.arange(bands) + shift * augment.shift_bands
        return jnp.stack(jnp.broadcast_arrays(moment[:, None], band[None])), after

    drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, AUGMENT_STREAM)
    positions, after = jax.vmap(places)(lengths, drawn)
    resampled = jax.vmap(_resample)(frames[..., None], positions)[..., 0]
    return _masked(augment, resampled, after, keys), after


def _masked(augment: Augment, frames: Array, lengths: Array, keys: Array) -> Array:
    """Frames [batch, time, channels] with random ranges replaced by the recording's mean."""
    sides = (augment.mask_frames, augment.mask_bands)
    if not augment.masks or not any(sides):
        return frames

    def one(frames: Array, length: Array, key: Array) -> Array:
        time, bands = frames.shape
        hidden = jnp.zeros(frames.shape, bool)
        for axis, (most, size) in enumerate(zip(sides, (length, bands), strict=True)):
            width_key, place_key = jax.random.split(jax.random.fold_in(key, axis))
            widths = jax.random.randint(width_key, (augment.masks, 1), 0, most + 1)
            room = jnp.maximum(size - widths, 0)
            starts = jnp.floor(jax.random.uniform(place_key, widths.shape) * (room + 1))
            places = jnp.arange((time, bands)[axis])[None]
            inside = jnp.any((places >= starts) & (places < starts + widths), axis=0)
            hidden |= jnp.expand_dims(inside, 1 - axis)
        valid = (jnp.arange(time) < length)[:, None]
        mean = jnp.sum(jnp.where(valid, frames, 0)) / jnp.maximum(length * bands, 1)
        return jnp.where(hidden, mean.astype(frames.dtype), frames)

    drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, MASK_STREAM)
    return jax.vmap(one)(frames, lengths, drawn)


def deform_batch(augment: Augment, batch: Batch, keys: Array) -> Batch:
    """A batch with deformed inputs and, for pixel labels, deformed targets and mask.

    Targets and mask [batch, height, width] are resampled to the nearest pixel.
    """
    if not augment.active:
        return batch
    inputs, targets = batch["inputs"], batch.get("targets")
    if isinstance(inputs, dict) and "frames" in inputs:
        frames, lengths = deform_recordings(augment, inputs["frames"], inputs["lengths"], keys)
        return {**batch, "inputs": {**inputs, "frames": frames, "lengths": lengths}}
    if isinstance(inputs, dict):
        raise ValueError(
            f"augment: inputs are {', '.join(sorted(inputs))}, "
            "allowed: one array of images or signals, or frames and lengths"
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
