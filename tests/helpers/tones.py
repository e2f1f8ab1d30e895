"""A kind of data for tests: words spelled in tones, one for each letter."""

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np

from train.acoustic import Spoken, encode
from train.data.base import Finder, Form, Utterances, just, named
from train.dataset import Bad, Dataset
from train.tasks import Transcription

RATE = 8000
WORDS = ("bad", "cab", "dad", "add")
PITCH = {"a": 300, "b": 700, "c": 1400, "d": 2600}
SPEAKERS = ("ann", "bob", "cat", "dan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Utterances):
    """Sentences of one to three words."""

    kind: ClassVar[str] = "tones"
    rate: int = RATE
    bands: int = 12
    buckets: int = 1
    count: int = 160

    def __str__(self) -> str:
        return "tones"


FORMS = {"tones": Form("tones", "words spelled in tones", just(Config()))}


def tone(text: str, speaker: str, seed: int) -> np.ndarray:
    """Samples of a sentence: 80 ms for a letter, 60 ms of silence between and for a space."""
    random = np.random.default_rng(seed)
    pitch = 1 + 0.15 * SPEAKERS.index(speaker)
    parts = [np.zeros(400)]
    for letter in text:
        time = np.arange(640) / RATE
        if letter in PITCH:
            parts.append(0.1 * np.sin(2 * math.pi * PITCH[letter] * pitch * time))
        parts.append(np.zeros(480))
    samples = np.concatenate(parts)
    return (samples + random.normal(0, 0.05, len(samples))).astype(np.float32)


def spoken(count: int, seed: int, units: str) -> list[Spoken]:
    """Random sentences of the speakers in turn."""
    random = np.random.default_rng(seed)
    recordings = []
    for index in range(count):
        words = random.choice(WORDS, random.integers(1, 4)).tolist()
        speaker, text = SPEAKERS[index % len(SPEAKERS)], " ".join(words)
        labels = list(text) if units == "characters" else words
        if units == "phones":
            labels = ["SIL", *text.replace(" ", ""), "SIL"]
        read = functools.partial(tone, text, speaker, 1000 * seed + index)
        recordings.append(Spoken(f"{seed}-{index}", speaker, text, labels, read))
    return recordings


def load(cfg: Config, find: Finder) -> Dataset:
    """Frames and labels, see ``train.acoustic``; phones are the letters and SIL, which is none."""
    counts = {"train": cfg.count, "validation": 20, "test": 40}
    splits = {
        split: spoken(count, seed, cfg.units) for seed, (split, count) in enumerate(counts.items())
    }
    scored = {"SIL": ""} if cfg.units == "phones" else None
    task = find.task_of(Transcription, cfg)
    encoded = encode(named(cfg), splits, cfg, Bad(), task, words=WORDS, scored=scored)
    return Dataset(str(cfg), encoded.tables, encoded.task, notes=encoded.notes)
