"""Acoustic features: log-mel spectra and mel-frequency cepstral coefficients (MFCC).

Davis and Mermelstein 1980; the filters follow HTK's mel scale, m(f) = 2595 log10(1 + f / 700).
A recording of n samples has ``Config.frames(n)`` frames: Hamming windows of pre-emphasised samples,
one every ``hop`` seconds, without padding at the ends.

    power     |FFT(window)|^2 / FFT size, in units of 16-bit samples
    log-mel   log(max(power F, FLOOR)), F: triangular filters evenly spaced in mel
    MFCC      the first coefficients of its orthonormal DCT-II, liftered (HTK book, section 5.6)
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from zoo.parts.checking import require, require_shape
from zoo.parts.config import PositiveFloat, PositiveInt, Rate, Rule, static

FLOOR = 1e-2
"""Least mel power, below that of a 16-bit recording's rounding errors.  Digital silence has it."""
FULL_SCALE = 32768
"""Samples of -1..1 are scaled by this before their power is computed."""
LIFTER = 22
"""Of the cepstral coefficients, as in HTK."""
REACH = 2
"""Frames on either side that a delta is computed from, as in HTK."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """The features of a frame.

    kind: log_mel or mfcc.
    rate: samples a second.
    bands: mel filters, from 0 to half the rate.
    coefficients: of MFCC, including the zeroth.
    deltas: 1 appends the regression over time of each value, 2 also that of the regression.
    window, hop: in seconds.
    preemphasis: p of x_t - p x_{t-1}.
    """

    kind: Literal["log_mel", "mfcc"] = "log_mel"
    rate: PositiveInt = 16_000
    bands: PositiveInt = 40
    coefficients: PositiveInt = 13
    deltas: Annotated[int, Rule(lambda value: value in (0, 1, 2), "0, 1 or 2")] = 0
    window: PositiveFloat = 0.025
    hop: PositiveFloat = 0.010
    preemphasis: Rate = 0.97

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require(self.kind == "log_mel" or self.coefficients <= self.bands, self, "coefficients",
                f"1 to bands={self.bands}")  # fmt: skip
        require(self.window_samples >= 2, self, "window", f"2 samples or more at rate={self.rate}")
        require(self.hop_samples >= 1, self, "hop", f"a sample or more at rate={self.rate}")

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        return round(self.window * self.rate)

    @property
    def hop_samples(self) -> int:
        """Samples from one window to the next."""
        return round(self.hop * self.rate)

    @property
    def fft(self) -> int:
        """Size of the Fourier transform, a power of two."""
        return 2 ** math.ceil(math.log2(self.window_samples))

    @property
    def values(self) -> int:
        """Values of a frame."""
        return (self.bands if self.kind == "log_mel" else self.coefficients) * (1 + self.deltas)

    def frames(self, samples: int) -> int:
        """Frames of a recording; 0 if it is shorter than a window."""
        return max(1 + (samples - self.window_samples) // self.hop_samples, 0)


def mel_filters(cfg: Config) -> Float[np.ndarray, "frequencies bands"]:
    """The triangular filters, float64 [fft // 2 + 1, bands].

    Filter b rises from 0 at edge b to 1 at edge b + 1 and falls to 0 at edge b + 2.
    """
    top = 2595 * np.log10(1 + cfg.rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, cfg.bands + 2) / 2595) - 1)
    frequency = np.arange(cfg.fft // 2 + 1)[:, None] * cfg.rate / cfg.fft
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling))


def cosines(cfg: Config) -> Float[np.ndarray, "bands coefficients"]:
    """The liftered DCT-II from log-mel bands to cepstral coefficients, float64."""
    band, order = np.arange(cfg.bands)[:, None], np.arange(cfg.coefficients)
    basis = np.cos(np.pi * order * (band + 0.5) / cfg.bands) * np.sqrt(2 / cfg.bands)
    basis[:, 0] /= np.sqrt(2)
    return basis * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))


def windows(cfg: Config, samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames w"]:
    """The windows of a recording, a view: [frames, window_samples + 1].

    The first value of each is the sample before it, which pre-emphasis needs; 0 before the first.
    """
    if not cfg.frames(len(samples)):
        return np.zeros((0, cfg.window_samples + 1), samples.dtype)
    padded = np.concatenate([np.zeros(1, samples.dtype), samples])
    return np.lib.stride_tricks.sliding_window_view(padded, cfg.window_samples + 1)[
        :: cfg.hop_samples
    ]


def static_features(cfg: Config, windows: Float[Array, "frames w"]) -> Float[Array, "frames v"]:
    """Log-mel spectra [frames, bands] or MFCC [frames, coefficients], without deltas.

    windows: of samples in -1..1, see ``windows``.  Raises ValueError for windows of another size.
    """
    require_shape("windows", windows, ("frames", cfg.window_samples + 1))
    scaled = windows * FULL_SCALE
    emphasised = scaled[:, 1:] - cfg.preemphasis * scaled[:, :-1]
    hamming = np.hamming(cfg.window_samples).astype(scaled.dtype)
    spectra = jnp.fft.rfft(emphasised * hamming[None], cfg.fft)
    power = (spectra.real**2 + spectra.imag**2) / cfg.fft
    log_mel = jnp.log(jnp.maximum(power @ jnp.asarray(mel_filters(cfg), power.dtype), FLOOR))
    return log_mel if cfg.kind == "log_mel" else log_mel @ jnp.asarray(cosines(cfg), power.dtype)


def neighbours(
    frames: Float[Array, "batch time values"], lengths: Int[Array, " batch"], reach: int
) -> Float[Array, "batch time places values"]:
    """Frames t - reach .. t + reach for each t; those outside of the recording repeat its ends.

    lengths: the other frames are padding, which is never read.
    """
    time = jnp.arange(frames.shape[1])[:, None] + jnp.arange(-reach, reach + 1)[None]
    places = jnp.clip(time[None], 0, jnp.maximum(lengths, 1)[:, None, None] - 1)
    return jax.vmap(lambda frames, places: frames[places])(frames, places)


def with_deltas(
    cfg: Config, frames: Float[Array, "batch time values"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch time all"]:
    """Appends the deltas, sum_k k x_{t+k} / sum_k k^2 for k = -2..2 (HTK book, section 5.9)."""
    order = jnp.arange(-REACH, REACH + 1, dtype=frames.dtype)
    parts = [frames]
    for _ in range(cfg.deltas):
        around = neighbours(parts[-1], lengths, REACH)
        parts.append(jnp.einsum("k,btkv->btv", order / jnp.sum(order**2), around))
    return jnp.concatenate(parts, axis=-1)


def splice(
    frames: Float[Array, "batch time values"], lengths: Int[Array, " batch"], reach: int
) -> Float[Array, "batch time all"]:
    """Each frame with ``reach`` frames on either side, oldest first: (2 reach + 1) times as many.

    Windows at the ends repeat the first and the last frame.
    """
    around = neighbours(frames, lengths, reach)
    return around.reshape(*around.shape[:2], -1)


def stack(frames: Float[Array, "batch time values"], count: int) -> Float[Array, "batch steps v"]:
    """Consecutive groups of ``count`` frames, side by side: [batch, ceil(time / count), ...].

    Zeros complete the last group.
    """
    batch, time, values = frames.shape
    steps = -(-time // count)
    padded = jnp.pad(frames, ((0, 0), (0, steps * count - time), (0, 0)))
    return padded.reshape(batch, steps, count * values)
