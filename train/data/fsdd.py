"""fsdd:PATH: spoken digits as log-mel frames [100, 40], from files DIGIT_SPEAKER_INDEX.wav.

0-4 of each digit and speaker test, 5-9 validate, the others train.  fsdd:PATH@SPEAKER tests on all
recordings of that speaker, and 0-4 of the others validate.

A recording is centred in 1.015 s (of FSDD's 3,000 all but 1 % are shorter; longer ones lose both ends) and filled up with
silence.  Its frames are Hann windows of 25 ms every 10 ms; their power spectra (FFT 256) pass through 40 triangles, evenly spaced
on HTK's mel scale, 2595 log10(1 + f/700), from 0 to 4 kHz.  Levels differ by 20 dB between speakers, so each recording's power
is relative to its greatest: features are log(power / greatest + FLOOR), from log(FLOOR), which is silence, to 0.
"""

import dataclasses
import pathlib
import re
import wave
from typing import ClassVar

import numpy as np

from train.data.base import Finder, Form, Source, path_after, split_options
from train.dataset import Dataset, Table
from train.formats import DataError, not_read, opened, reading, visible
from train.tasks import Classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A folder of recordings."""

    kind: ClassVar[str] = "fsdd"
    identity: ClassVar[tuple[str, ...]] = ("path", "speaker")
    path: str = ""
    """The folder."""
    speaker: str = ""
    """Test on all recordings of this speaker."""

    def __str__(self) -> str:
        return f"fsdd:{self.path}" + (f"@{self.speaker}" if self.speaker else "")


def _parse(path: str) -> Config:
    folder, speaker = split_options(path)
    return Config(path=folder, speaker=speaker)


FORMS = {"fsdd": Form("fsdd:PATH[@SPEAKER]", "spoken digits, log-mel frames", path_after(_parse))}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs float32 [n, 100, 40], targets int32 [n].  Extras: "speakers", the name for each row."""
    splits, speakers, notes = read_fsdd(find(cfg.path), cfg.speaker)
    inputs = splits["train"]["inputs"]
    input_range = (float(inputs.min()), float(inputs.max()))
    tables = {}
    for split, columns in splits.items():
        names = tuple(speakers[index] for index in columns.pop("speakers"))
        tables[split] = Table(columns, extras={"speakers": names})
    return Dataset(str(cfg), tables, Classification(tuple("0123456789")), input_range, notes)


RATE, WINDOW, HOP, FFT, BANDS, FRAMES = 8000, 200, 80, 256, 40, 100
SAMPLES = WINDOW + HOP * (FRAMES - 1)
FLOOR = 1e-6
"""What is 60 dB below a recording's greatest power is the room's noise, which differs by speaker, rather than speech."""
MAX_SAMPLES = 60 * RATE
BLOCK = 256
"""Recordings whose spectra are in memory at a time."""

NAME = re.compile(r"([0-9])_(.+)_([0-9]+)\.wav", re.IGNORECASE)


def read_wav(file: pathlib.Path) -> np.ndarray:
    """A wav file of 8 kHz, mono, 16 bits -> int16 [samples], at least one and at most a minute."""
    with opened(file) as raw:
        try:
            with wave.open(raw) as sound:
                kind = (sound.getframerate(), sound.getnchannels(), 8 * sound.getsampwidth())
                count = sound.getnframes()
                if kind != (RATE, 1, 16):
                    raise DataError(
                        f"{file}: {kind[0]} Hz, channels: {kind[1]}, bits: {kind[2]}; expected {RATE} Hz, 1, 16"
                    )
                if not 0 < count <= MAX_SAMPLES:
                    raise DataError(
                        f"{file}: announces {count} samples, allowed: 1 to {MAX_SAMPLES}"
                    )
                data = sound.readframes(count)
        except EOFError:  # which says nothing more
            raise DataError(f"{file}: not a wav file, or truncated in its header") from None
        if len(data) != 2 * count:
            raise DataError(
                f"{file}: truncated: {len(data)} of {2 * count} bytes for {count} samples"
            )
        return np.frombuffer(data, np.int16)


def centred(samples: np.ndarray, length: int = SAMPLES) -> np.ndarray:
    """Samples [n] -> [length]: zeros on both sides, or the middle."""
    cut = max(len(samples) - length, 0) // 2
    kept = samples[cut : cut + length]
    before = (length - len(kept)) // 2
    return np.pad(kept, (before, length - len(kept) - before))


def mel_filters() -> np.ndarray:
    """The triangles, float64 [FFT // 2 + 1, BANDS]: band b rises from 0 at edge b to 1 at edge b + 1, and is 0 at edge b + 2."""
    edges = 700 * (
        10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2) / 2595) - 1
    )
    frequency = np.arange(FFT // 2 + 1)[:, None] * RATE / FFT
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(
        0, np.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre))
    )


def log_mel(signals: np.ndarray) -> np.ndarray:
    """Signals [n, samples] -> float32 [n, 1 + (samples - WINDOW) // HOP, BANDS], between log(FLOOR) and 0."""
    hann, filters = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW), mel_filters()
    features = []
    for start in range(0, len(signals), BLOCK):
        windows = np.lib.stride_tricks.sliding_window_view(
            signals[start : start + BLOCK], WINDOW, axis=1
        )[:, ::HOP]
        spectra = np.fft.rfft(windows * hann, FFT)
        power = (spectra.real**2 + spectra.imag**2) @ filters
        greatest = power.max(axis=(1, 2), keepdims=True)
        logs = np.log(power / (greatest + (greatest == 0)) + FLOOR)
        # Rounded, as the last bits are not the same on every machine, but the fingerprint of the data has to be.
        features.append((np.round(logs * 1024) / 1024).astype(np.float32))
    return np.concatenate(features)


def read_fsdd(
    folder: pathlib.Path, held_out: str = ""
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...], tuple[str, ...]]:
    """The Free Spoken Digit Dataset: files DIGIT_SPEAKER_INDEX.wav in the folder or in its sub-folder recordings.

    Returns the splits {"train": {"inputs": float32 [n, FRAMES, BANDS], "targets": int32 [n], "speakers": int32 [n]}, ...}, the
    speakers' names, sorted, and a note of files that are no recordings.  Indices 0-4 test, 5-9 validate, the others train; or,
    with a speaker held out, all of that speaker's test, and of the others 0-4 validate.  Raises DataError that names the file and
    its fault, or the speakers there are.
    """
    with reading(folder):
        place = folder / "recordings" if (folder / "recordings").is_dir() else folder
        if not place.is_dir():
            raise DataError(f"{place}: not a folder")
        entries = visible(place)
        files = [entry for entry in entries if entry.suffix.lower() == ".wav"]
    if not files:
        raise DataError(f"{place}: no files DIGIT_SPEAKER_INDEX.wav")
    parsed = []
    for file in files:
        match = NAME.fullmatch(file.name)
        if not match:
            raise DataError(
                f"{file}: expected a name like 7_speaker_23.wav: DIGIT_SPEAKER_INDEX.wav"
            )
        parsed.append(match.groups())
    speakers = tuple(sorted({speaker for _, speaker, _ in parsed}))
    if held_out and held_out not in speakers:
        raise DataError(f"{place}: no speaker {held_out!r}; known: {', '.join(speakers)}")
    index = np.array([int(index) for *_, index in parsed])
    if held_out:
        test = np.array([speaker == held_out for _, speaker, _ in parsed])
        validation = ~test & (index < 5)
    else:
        test = index < 5
        validation = ~test & (index < 10)
    chosen = {"train": ~test & ~validation, "validation": validation, "test": test}
    for split, rows in chosen.items():
        if not rows.any():
            raise DataError(
                f"{place}: no recordings for the {split} split among {len(files)}; it goes by index and speaker"
            )
    table = {
        "inputs": log_mel(np.stack([centred(read_wav(file)) for file in files])),
        "targets": np.array([int(digit) for digit, *_ in parsed], np.int32),
        "speakers": np.array([speakers.index(speaker) for _, speaker, _ in parsed], np.int32),
    }
    splits = {
        split: {key: value[rows] for key, value in table.items()} for split, rows in chosen.items()
    }
    return (
        splits,
        speakers,
        not_read([entry for entry in entries if entry.suffix.lower() != ".wav"]),
    )
