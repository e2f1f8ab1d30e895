"""fsdd:PATH: spoken digits as log-mel frames [100, 40], from files DIGIT_SPEAKER_INDEX.wav.

For each digit and speaker, recordings 0-4 are for test, 5-9 for validation and the others for
training.  With fsdd:PATH@SPEAKER, the test split is all recordings of that speaker, and recordings
0-4 of the other speakers are for validation.

A recording is centred in 1.015 s, padded with zeros or cut at both ends (1 % of FSDD's 3,000 are
longer).  Frames are Hann windows of 25 ms every 10 ms.  Their power spectra (FFT 256) pass through
40 triangular filters, evenly spaced on HTK's mel scale, 2595 log10(1 + f/700), from 0 to 4 kHz.
Levels differ by 20 dB between speakers, so power is divided by its maximum in the recording:
features are log(power / maximum + FLOOR), from log(FLOOR) for silence to 0.
"""

import dataclasses
import pathlib
import re
import wave
from typing import ClassVar, NamedTuple

import numpy as np

from train.data.base import Finder, Form, Source, path_after, split_options
from train.dataset import Dataset, Table
from train.formats import DataError, not_read, opened, reading, visible
from train.tasks import Classification
from zoo.parts import acoustics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A folder of recordings of spoken digits."""

    kind: ClassVar[str] = "fsdd"
    identity: ClassVar[tuple[str, ...]] = ("path", "speaker")
    path: str = ""
    """The folder."""
    speaker: str = ""
    """Speaker to hold out: test on all recordings of this one."""

    def __str__(self) -> str:
        return f"fsdd:{self.path}" + (f"@{self.speaker}" if self.speaker else "")


def _parse(path: str) -> Config:
    folder, speaker = split_options(path)
    return Config(path=folder, speaker=speaker)


FORMS = {"fsdd": Form("fsdd:PATH[@SPEAKER]", "spoken digits, log-mel frames", path_after(_parse))}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs float32 [n, 100, 40], targets int32 [n].  Extras: "speakers", a name for each row."""
    splits, speakers, notes = read_fsdd(find(cfg.path), cfg.speaker)
    inputs = splits["train"]["inputs"]
    input_range = (float(inputs.min()), float(inputs.max()))
    tables = {}
    for split, columns in splits.items():
        names = tuple(speakers[index] for index in columns.pop("speakers"))
        tables[split] = Table(columns, extras={"speakers": names})
    return Dataset(str(cfg), tables, Classification(tuple("0123456789")), input_range, notes)


RATE, WINDOW, HOP, FFT, BANDS, FRAMES = 8000, 200, 80, 256, 40, 100
FRONT_END = acoustics.Config(rate=RATE, bands=BANDS, window=WINDOW / RATE)
SAMPLES = WINDOW + HOP * (FRAMES - 1)
FLOOR = 1e-6
"""-60 dB.  Below it is mostly room noise, which differs by speaker."""
MAX_SAMPLES = 60 * RATE
BLOCK = 256
"""Number of recordings whose spectra are in memory at once."""

NAME = re.compile(r"([0-9])_(.+)_([0-9]+)\.wav", re.IGNORECASE)


def read_wav(file: pathlib.Path) -> np.ndarray:
    """Reads a wav file (8 kHz, mono, 16 bits, up to a minute) -> int16 [samples]."""
    with opened(file) as raw:
        try:
            with wave.open(raw) as sound:
                kind = (sound.getframerate(), sound.getnchannels(), 8 * sound.getsampwidth())
                count = sound.getnframes()
                if kind != (RATE, 1, 16):
                    raise DataError(
                        f"{file}: {kind[0]} Hz, channels: {kind[1]}, bits: {kind[2]}; "
                        f"expected {RATE} Hz, 1, 16"
                    )
                if not 0 < count <= MAX_SAMPLES:
                    raise DataError(
                        f"{file}: announces {count} samples, allowed: 1 to {MAX_SAMPLES}"
                    )
                data = sound.readframes(count)
        except EOFError:  # has no message
            raise DataError(f"{file}: not a wav file, or truncated in its header") from None
        if len(data) != 2 * count:
            raise DataError(
                f"{file}: truncated: {len(data)} of {2 * count} bytes for {count} samples"
            )
        return np.frombuffer(data, np.int16)


def centred(samples: np.ndarray, length: int = SAMPLES) -> np.ndarray:
    """Samples [n] -> [length]: the middle part, or padded with zeros on both sides."""
    cut = max(len(samples) - length, 0) // 2
    kept = samples[cut : cut + length]
    before = (length - len(kept)) // 2
    return np.pad(kept, (before, length - len(kept) - before))


def log_mel(signals: np.ndarray) -> np.ndarray:
    """Signals [n, samples] -> features, float32 [n, 1 + (samples - WINDOW) // HOP, BANDS]."""
    hann, filters = (
        0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW),
        acoustics.mel_filters(FRONT_END),
    )
    features = []
    for start in range(0, len(signals), BLOCK):
        windows = np.lib.stride_tricks.sliding_window_view(
            signals[start : start + BLOCK], WINDOW, axis=1
        )[:, ::HOP]
        spectra = np.fft.rfft(windows * hann, FFT)
        power = (spectra.real**2 + spectra.imag**2) @ filters
        greatest = power.max(axis=(1, 2), keepdims=True)
        logs = np.log(power / (greatest + (greatest == 0)) + FLOOR)
        # Rounded, because the last bits depend on the machine and the fingerprint must not.
        features.append((np.round(logs * 1024) / 1024).astype(np.float32))
    return np.concatenate(features)


def read_fsdd(
    folder: pathlib.Path, held_out: str = ""
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...], tuple[str, ...]]:
    """The Free Spoken Digit Dataset: DIGIT_SPEAKER_INDEX.wav in the folder or in its recordings/.

    held_out: the speaker to test on; see the module for the splits.
    Returns splits {"train": {"inputs": float32 [n, FRAMES, BANDS], "targets": int32 [n],
    "speakers": int32 [n]}, ...}, the sorted names of the speakers, and a note on files that are
    not recordings.  Raises DataError naming the file and its fault, or the known speakers.
    """
    place, parsed, files, others = listed(folder)
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
                f"{place}: no recordings for the {split} split among {len(files)}; "
                "splits depend on index and speaker"
            )
    table = {
        "inputs": log_mel(np.stack([centred(read_wav(file)) for file in files])),
        "targets": np.array([int(digit) for digit, *_ in parsed], np.int32),
        "speakers": np.array([speakers.index(speaker) for _, speaker, _ in parsed], np.int32),
    }
    splits = {
        split: {key: value[rows] for key, value in table.items()} for split, rows in chosen.items()
    }
    return splits, speakers, not_read(others)


class Listed(NamedTuple):
    """The files of a data set.

    place: the folder they are in.  names: (digit, speaker, index) of each of ``files``.
    others: files that are not recordings.
    """

    place: pathlib.Path
    names: list[tuple[str, str, str]]
    files: list[pathlib.Path]
    others: list[pathlib.Path]


def listed(folder: pathlib.Path) -> Listed:
    """The files DIGIT_SPEAKER_INDEX.wav in the folder or in its recordings/.

    Raises DataError if there is none, and for a wav file with another name.
    """
    with reading(folder):
        place = folder / "recordings" if (folder / "recordings").is_dir() else folder
        if not place.is_dir():
            raise DataError(f"{place}: not a folder")
        entries = visible(place)
    files = [entry for entry in entries if entry.suffix.lower() == ".wav"]
    if not files:
        raise DataError(f"{place}: no files DIGIT_SPEAKER_INDEX.wav")
    names = []
    for file in files:
        match = NAME.fullmatch(file.name)
        if not match:
            raise DataError(
                f"{file}: expected a name like 7_speaker_23.wav: DIGIT_SPEAKER_INDEX.wav"
            )
        names.append(match.groups())
    return Listed(place, names, files, [entry for entry in entries if entry not in set(files)])
