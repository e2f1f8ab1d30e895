"""Reads recordings: wav, flac and the other formats of libsndfile, as mono samples at one rate."""

import io
import math
import pathlib
import re
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from train.formats.files import DataError, opened, reading, room_for, unzipped

MAX_SECONDS = 3600
RATES = (1_000, 384_000)
"""Sampling rates of files, in Hz."""
MAX_PEAK = 4.0
"""Floats up to here are limited to 1 and count as clipped; larger ones have another scale."""
BLOCK = 2**22
"""Values that are decoded at once, so that memory depends on the content, not on the header."""
STREAMED = 0x7FFFF000
"""Programs that write to a pipe announce this many bytes or more, because they do not know."""
FULL_SCALE = {
    "PCM_S8": 1 - 2**-7, "PCM_U8": 1 - 2**-7, "PCM_16": 1 - 2**-15, "PCM_24": 1 - 2**-23,
    "ULAW": 32124 / 32768, "ALAW": 32256 / 32768,
}  # fmt: skip
"""The largest value of each encoding; 1 for the others (2^31 - 1 is 2^31 in float32)."""


class Audio(NamedTuple):
    """A recording.

    samples: float32 [n] in -1..1, mono, at the requested rate.
    clipped: the share of the values, of all channels, at full scale or above it, 0..1.
    recorded_rate: the sampling rate of the file in Hz.  channels: the file's.
    """

    samples: np.ndarray
    clipped: float
    recorded_rate: int
    channels: int


def read_audio(file: pathlib.Path, rate: int) -> Audio:
    """Reads a recording of up to an hour, mixed down to mono and resampled to ``rate`` Hz.

    The format is detected from the content: wav, flac, NIST SPHERE (not compressed), ogg, mp3, aiff
    and others, with any number of bits, any rate in ``RATES``; it may be gzipped.
    Raises DataError naming the file, see ``read_audio_bytes``.
    """
    with opened(file) as raw:
        data = _content(file, raw)
    return read_audio_bytes(data, str(file), rate)


def read_audio_bytes(data: bytes, name: str, rate: int) -> Audio:
    """``read_audio`` for the content of a file, for example from standard input.

    Channels are averaged.  Values of float files between 1 and ``MAX_PEAK`` are limited to 1.
    Raises DataError, beginning with ``name``, for data that are empty, not audio, damaged,
    truncated, silent, longer than an hour, not finite, or floats of another scale than -1..1.  Of
    the formats without compression, truncation is noticed in wav, aiff and NIST files.
    """
    import soundfile  # takes a while to load its library

    if not data:
        raise DataError(f"{name}: empty")
    with reading(name):
        _check_bytes(name, data)
        try:
            sound = soundfile.SoundFile(_Bytes(data))
        except soundfile.LibsndfileError as error:
            raise DataError(f"{name}: not an audio file, or damaged: {_said(error)}") from None
        with sound:
            _check_header(name, sound, data)
            try:
                samples, clipped = _mixed(name, sound)
            except soundfile.LibsndfileError as error:
                raise DataError(f"{name}: damaged: {_said(error)}") from None
            recorded, channels = sound.samplerate, sound.channels
        if samples.min() == samples.max():
            raise DataError(f"{name}: silent: all samples are equal ({len(samples):,})")
        return Audio(_resampled(samples, recorded, rate), clipped, recorded, channels)


class _Bytes(io.BytesIO):
    """Bytes in which a seek never fails.

    soundfile would print the exception of one before the start, which damaged headers ask for.
    """

    def seek(self, offset: int, whence: int = 0, /) -> int:
        start = (0, self.tell(), len(self.getbuffer()))[whence]
        return super().seek(min(max(start + offset, 0), len(self.getbuffer())))


def _content(file: pathlib.Path, raw: BinaryIO) -> bytes:
    stream, room, pieces = unzipped(raw), room_for(raw), []
    while piece := stream.read(2**20):
        pieces.append(piece)
        room -= len(piece)
        if room < 0:
            raise DataError(f"{file}: more than {room_for(raw)} bytes")
    return b"".join(pieces)


def _said(error: Any) -> str:
    """The message of libsndfile, without the object that soundfile names in it."""
    return error.error_string.strip().removeprefix("Error : ").rstrip(".")


def _check_bytes(name: str, data: bytes) -> None:
    """Raises DataError if samples are missing at the end of a wav or aiff file.

    libsndfile reads such files as if they were shorter.
    """
    if data[8:12] not in (b"WAVE", b"AIFF", b"AIFC"):
        return
    order = "little" if data[:4] == b"RIFF" else "big"
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], order)
        if data[place : place + 4] in (b"data", b"SSND"):
            present = len(data) - place - 8
            if present < size < STREAMED:
                raise DataError(f"{name}: truncated: {present:,} of {size:,} bytes of samples")
            return
        place += 8 + size + size % 2


def _check_header(name: str, sound: Any, data: bytes) -> None:
    """Raises DataError for lengths and rates out of range, before memory is used for them."""
    least, most = RATES
    if not least <= sound.samplerate <= most:
        raise DataError(f"{name}: {sound.samplerate:,} Hz, allowed: {least:,} to {most:,}")
    if sound.frames == 2**63 - 1:
        raise DataError(
            f"{name}: announces no length, as if written to a pipe; encode it into a file"
        )
    seconds = sound.frames // sound.samplerate
    if seconds > MAX_SECONDS:
        raise DataError(f"{name}: announces {seconds:,} s, allowed: up to {MAX_SECONDS:,}")
    if sound.frames < 1:
        raise DataError(f"{name}: no samples")
    announced = re.search(rb"\nsample_count -i (\d{1,18})\s", data[:1024])
    if sound.format == "NIST" and announced and sound.frames < int(announced[1]):
        raise DataError(f"{name}: truncated: {sound.frames:,} of {int(announced[1]):,} samples")


def _mixed(name: str, sound: Any) -> tuple[np.ndarray, float]:
    """The mean of the channels, float32 [frames] in -1..1, and the share of clipped values."""
    full = FULL_SCALE.get(sound.subtype, 1.0)
    frames, channels = sound.frames, sound.channels
    pieces, clipped, done = [], 0, 0
    while done < frames:
        count = min(max(BLOCK // channels, 1), frames - done)
        values = sound.read(count, dtype="float32", always_2d=True)
        done += len(values)
        if len(values) < count:
            raise DataError(f"{name}: truncated: {done:,} of {frames:,} samples")
        if not np.isfinite(values).all():
            raise DataError(f"{name}: holds values that are not finite")
        levels = np.abs(values)
        if levels.max() > MAX_PEAK:
            raise DataError(f"{name}: values up to {levels.max():.6g}, expected -1 to 1")
        clipped += int(np.sum(levels >= full))
        pieces.append(np.clip(values, -1, 1).mean(axis=1))
    return np.concatenate(pieces), clipped / (frames * channels)


def _resampled(samples: np.ndarray, recorded: int, rate: int) -> np.ndarray:
    """Samples [n] at ``recorded`` Hz -> float32 [ceil(n rate / recorded)] in -1..1."""
    if recorded != rate:
        from scipy.signal import resample_poly  # takes a while to load

        divisor = math.gcd(recorded, rate)
        samples = resample_poly(samples, rate // divisor, recorded // divisor)
    # The filter overshoots at steps.
    return np.clip(samples, -1, 1).astype(np.float32, copy=False)
