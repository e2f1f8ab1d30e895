"""Strings of spoken digits, joined from recordings of single ones.

    spoken-digits         300 recordings of 6 speakers that ship with the package
    spoken-digits:PATH    all of FSDD, files DIGIT_SPEAKER_INDEX.wav

A string has one to five digits of one speaker, with pauses between them; those of the test split
have up to seven.  Recordings stay in their split: 0-4 of every digit and speaker are for test, 5-9
for validation, the others for training.  Speakers are the same in all splits.

The Free Spoken Digit Dataset is by Zohar Jackson and others, CC BY-SA 4.0; see
train/assets/make_spoken_digits.py for how the embedded part was made from it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from train.acoustic import Spoken, encode
from train.data import fsdd
from train.data.base import Finder, Form, Utterances, named
from train.dataset import Bad, Dataset
from train.formats import DataError, not_read
from train.tasks import Transcription

ASSETS = pathlib.Path(__file__).parent.parent / "assets"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEED = 2013
STRINGS = {"train": None, "validation": 200, "test": 400}
"""Strings of each split; ``Config.count`` for training."""
MOST = {"train": 5, "validation": 5, "test": 7}
"""Most digits of a string."""
PAUSE = (0.03, 0.30)
"""Shortest and longest pause before, between and after digits, in seconds."""
NOISE = 2e-4
"""Deviation of the noise in a string, so that pauses are not digital silence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Utterances):
    """Strings of spoken digits."""

    kind: ClassVar[str] = "spoken_digits"
    identity: ClassVar[tuple[str, ...]] = ("path",)
    counts: ClassVar[tuple[str, ...]] = (*Utterances.counts, "count")
    path: str = ""
    """A folder of FSDD; "" for the embedded recordings."""
    count: int = 1000
    """Number of training strings."""
    units: str = "words"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What a label stands for: words or characters."""
    rate: int = fsdd.RATE
    """Samples a second: 8,000."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        if self.units not in ("words", "characters"):
            raise ValueError(f"data.units={self.units!r}, allowed: 'words', 'characters'")
        if self.rate != fsdd.RATE:
            raise ValueError(f"data.rate={self.rate!r}, allowed: {fsdd.RATE}")

    def __str__(self) -> str:
        return f"spoken-digits:{self.path}" if self.path else "spoken-digits"


def _parse(rest: str) -> Config:
    word, _, path = rest.partition(":")
    if word != "-digits" or (rest != word and not path):
        raise ValueError("expected spoken-digits or spoken-digits:PATH")
    return Config(path=path)


FORMS = {
    "spoken": Form("spoken-digits[:PATH]", "strings of spoken digits, embedded or FSDD", _parse)
}


def load(cfg: Config, find: Finder) -> Dataset:
    """Frames and labels, see ``train.acoustic``."""
    recordings, notes = _of_folder(find(cfg.path)) if cfg.path else (_embedded(), ())
    counts = {split: count or cfg.count for split, count in STRINGS.items()}
    known, bad = find.task_of(Transcription, cfg), Bad()
    if known and known.features.rate != fsdd.RATE:
        raise DataError(
            f"{named(cfg)}: {fsdd.RATE} Hz; allowed for this run: {known.features.rate}"
        )
    units = known.units if known else cfg.units
    splits = {
        split: strings(recordings[split], counts[split], MOST[split], units, number)
        for number, split in enumerate(recordings)
    }
    encoded = encode(named(cfg), splits, cfg, bad, known, words=WORDS)
    return Dataset(str(cfg), encoded.tables, encoded.task, notes=(*notes, *encoded.notes))


Digits = dict[tuple[str, int], list[np.ndarray]]
"""Samples, int16, of the recordings of each (speaker, digit)."""


def strings(recordings: Digits, count: int, most: int, units: str, number: int) -> list[Spoken]:
    """``count`` strings of one to ``most`` digits.  number: of the split, for the seed."""
    random = np.random.default_rng([SEED, number])
    speakers = sorted({speaker for speaker, _ in recordings})
    spoken = []
    for index in range(count):
        speaker = speakers[index % len(speakers)]
        digits = random.integers(0, 10, random.integers(1, most + 1)).tolist()
        taken = []
        for digit in digits:
            choices = recordings[speaker, digit]
            taken.append(choices[random.integers(len(choices))])
        pauses = random.uniform(*PAUSE, len(digits) + 1)
        words = [WORDS[digit] for digit in digits]
        text = " ".join(words)
        labels = words if units == "words" else list(text)
        read = functools.partial(_joined, taken, pauses, (number, index))
        spoken.append(Spoken(f"string {index}", speaker, text, labels, read))
    return spoken


def _joined(recordings: list[np.ndarray], pauses: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """The samples of a string, float32 [n] in -1..1."""
    parts = [np.zeros(round(pauses[0] * fsdd.RATE), np.float32)]
    for samples, pause in zip(recordings, pauses[1:], strict=True):
        parts += [samples / np.float32(32768), np.zeros(round(pause * fsdd.RATE), np.float32)]
    joined = np.concatenate(parts)
    noise = np.random.default_rng([SEED, *seed]).normal(0, NOISE, len(joined))
    return (joined + noise).astype(np.float32)


def _split_of(index: int) -> str:
    return "test" if index < 5 else "validation" if index < 10 else "train"


def _grouped(files: Iterable[tuple[Sequence[str], np.ndarray]]) -> dict[str, Digits]:
    splits: dict[str, Digits] = {"train": {}, "validation": {}, "test": {}}
    for (digit, speaker, index), samples in files:
        splits[_split_of(int(index))].setdefault((speaker, int(digit)), []).append(samples)
    return splits


def _embedded() -> dict[str, Digits]:
    import soundfile

    samples, _ = soundfile.read(ASSETS / "spoken_digits.flac", dtype="int16")
    rows = [line.split("\t") for line in (ASSETS / "spoken_digits.tsv").read_text().splitlines()]
    ends = np.cumsum([int(length) for _, length in rows])
    names = [name.split("_") for name, _ in rows]
    return _grouped(zip(names, np.split(samples, ends[:-1]), strict=True))


def _of_folder(folder: pathlib.Path) -> tuple[dict[str, Digits], tuple[str, ...]]:
    """Raises DataError if a speaker lacks a digit in a split."""
    place, names, files, others = fsdd.listed(folder)
    splits = _grouped(
        [(name, fsdd.read_wav(file)) for name, file in zip(names, files, strict=True)]
    )
    speakers = sorted({speaker for _, speaker, _ in names})
    for split, digits in splits.items():
        for speaker in speakers:
            if lacking := [digit for digit in range(10) if (speaker, digit) not in digits]:
                raise DataError(
                    f"{place}: no {split} recording of digit {lacking[0]} by {speaker}; "
                    "splits depend on the index"
                )
    return splits, not_read(others)
