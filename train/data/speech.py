"""Recordings of speech with transcripts, by the layout of the corpus.

    speech:PATH         a TSV file with the columns path, speaker, text, or a folder of train.tsv,
                        validation.tsv and test.tsv
    an4, an4:DIR        CMU AN4: train.tsv, test.tsv, an4.dic and an4_canon.json
    librispeech:DIR     LibriSpeech as it is distributed: train-clean-100, dev-clean, test-clean

Recordings are of any format that libsndfile reads, at any rate, with any number of channels.
Without a validation split, every tenth speaker of the training split is for validation; of a TSV
file alone, every tenth speaker is for test too.  ``train.acoustic`` describes the tables.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from train import utterances
from train.acoustic import Spoken, encode
from train.data.base import Finder, Form, Utterances, missing, named, path_after
from train.dataset import SPLITS, Bad, Dataset
from train.formats import DataError, read_audio
from train.tasks import Transcription, Units
from train.utterances import Utterance

Layout = Literal["manifest", "an4", "librispeech"]
LAYOUTS = {"speech": "manifest", "an4": "an4", "librispeech": "librispeech"}
"""Layouts by the words that name them."""
Pronunciations = Mapping[str, Sequence[tuple[str, ...]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Utterances):
    """A corpus of speech."""

    kind: ClassVar[str] = "speech"
    identity: ClassVar[tuple[str, ...]] = ("layout", "path", "dictionary")
    layout: Layout = "manifest"
    """How its files are arranged."""
    path: str = ""
    """A folder, or a TSV file."""
    dictionary: str = ""
    """Pronouncing dictionary for units=phones: a word and its phones per line.  AN4 has its own."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        needed = self.units == "phones" and self.layout != "an4"
        if needed != bool(self.dictionary):
            allowed = "a file, which units='phones' needs" if needed else "''"
            raise ValueError(f"data.dictionary={self.dictionary!r}, allowed here: {allowed}")

    def __str__(self) -> str:
        word = next(word for word, layout in LAYOUTS.items() if layout == self.layout)
        return "an4" if self.layout == self.path == "an4" else f"{word}:{self.path}"


def _an4(rest: str) -> Config:
    if not rest:
        return Config(layout="an4", path="an4")
    if not rest.startswith(":") or not rest[1:]:
        raise ValueError("expected an4 or an4:DIR")
    return Config(layout="an4", path=rest[1:])


FORMS = {
    "speech": Form(
        "speech:PATH",
        "recordings and a TSV of path, speaker, text",
        path_after(lambda path: Config(path=path)),
    ),
    "an4": Form("an4[:DIR]", "CMU AN4: spoken letters, numbers and dates", _an4),
    "librispeech": Form(
        "librispeech:DIR",
        "books, read aloud",
        path_after(lambda path: Config(layout="librispeech", path=path)),
    ),
}
_READERS = {
    "manifest": utterances.manifest_splits,
    "an4": utterances.read_an4,
    "librispeech": utterances.read_librispeech,
}


class Corpus(NamedTuple):
    """The recordings of a corpus, by split.

    words: those of its dictionary.
    pronounced: the pronunciations of each word of a recording, in phones.
    pauses: whether the words may be silent in between, unlike labels that name silence too.
    scored: see ``train.tasks.Transcription``, by phone; {} if all phones count as themselves.
    """

    spoken: Mapping[str, Sequence[Spoken]]
    words: Collection[str]
    pronounced: Callable[[Spoken], Sequence[Sequence[Sequence[str]]]]
    pauses: bool
    scored: Mapping[str, str]


class Recorded(Protocol):
    """``recordings`` of a corpus.  bad: collects unusable ones.  rate: of their samples."""

    def __call__(self, cfg: Any, find: Finder, bad: Bad, *, units: Units, rate: int) -> Corpus:
        """The recordings, with labels of these units."""
        ...


def recordings(cfg: Config, find: Finder, bad: Bad, *, units: Units, rate: int) -> Corpus:
    """See ``Recorded``."""
    place = _place(cfg, find)
    pronunciations = _pronunciations(cfg, place, find)

    def labels(text: str, utterance: Utterance) -> Sequence[str]:
        if units == "characters":
            return list(text)
        words = text.split()
        if units == "words":
            return words
        if unknown := [word for word in words if word not in pronunciations]:
            raise DataError(f"words that the dictionary lacks ({', '.join(unknown[:3])})")
        return [phone for word in words for phone in pronunciations[word][0]]

    return Corpus(
        spoken_of(_READERS[cfg.layout](place), place, find, labels, bad, rate),
        words=pronunciations,
        pronounced=lambda spoken: [pronunciations[word] for word in spoken.text.split()],
        pauses=True,
        scored={},
    )


def load(cfg: Config, find: Finder) -> Dataset:
    """Frames and labels of the recordings, see ``train.acoustic``."""
    return labelled(cfg, find, recordings)


def labelled(cfg: Utterances, find: Finder, read: Recorded) -> Dataset:
    """The data set of a corpus: frames and labels of its recordings."""
    known, bad = find.task_of(Transcription, cfg), Bad()
    rate = (known.features if known else cfg.front_end).rate
    corpus = read(cfg, find, bad, units=known.units if known else cfg.units, rate=rate)
    encoded = encode(
        named(cfg), corpus.spoken, cfg, bad, known, words=corpus.words, scored=corpus.scored
    )
    return Dataset(str(cfg), encoded.tables, encoded.task, notes=encoded.notes)


def spoken_of(
    splits: Mapping[str, Sequence[Utterance]],
    place: pathlib.Path,
    find: Finder,
    labels: Callable[[str, Utterance], Sequence[str]],
    bad: Bad,
    rate: int,
) -> dict[str, list[Spoken]]:
    """The recordings of utterances, with missing splits taken from the others.

    place: folder or file of the corpus.  labels: (text, utterance) -> its labels; raises DataError.
    """
    spoken: dict[str, list[Spoken]] = {}
    for split, members in divided(splits, divide=find.divide).items():
        spoken[split] = []
        for each in members:
            text, name = " ".join(each.text.split()), _shown(each, place)
            read = functools.partial(_samples, each.file, rate)
            try:
                spoken[split].append(Spoken(name, each.speaker, text, labels(text, each), read))
            except DataError as error:
                bad.add(str(error), name)
    return spoken


def divided(
    splits: Mapping[str, Sequence[Utterance]], *, divide: bool
) -> dict[str, list[Utterance]]:
    """The splits, with missing ones taken from the others by speaker, see the module.

    divide: if False, nothing is divided, and utterances without splits become the test split.
    """
    if not divide:
        return {"test" if split == "all" else split: list(each) for split, each in splits.items()}
    if "all" in splits:
        rest, test = utterances.by_speaker(splits["all"])
        splits = {"train": rest, "test": test}
    if "validation" not in splits:
        kept, held_out = utterances.by_speaker(splits["train"])
        splits = {**splits, "train": kept, "validation": held_out}
    return {split: list(splits[split]) for split in SPLITS if split in splits}


def _place(cfg: Config, find: Finder) -> pathlib.Path:
    try:
        return find(cfg.path)
    except DataError:
        if str(cfg) != "an4":
            raise
        raise missing(
            cfg, "an4/ with train.tsv, test.tsv, their recordings and an4_canon.json in DIR"
        ) from None


def _pronunciations(cfg: Config, place: pathlib.Path, find: Finder) -> Pronunciations:
    """Pronunciations of the corpus's words; {} if it has no dictionary."""
    if cfg.layout == "an4":
        return utterances.read_pronunciations(place / "an4_canon.json")
    return utterances.read_pronunciations(find(cfg.dictionary)) if cfg.dictionary else {}


def _shown(utterance: Utterance, place: pathlib.Path) -> str:
    """The name of an utterance, independent of where the corpus is."""
    root = place if place.is_dir() else place.parent
    inside = utterance.file.is_relative_to(root)
    return utterance.file.relative_to(root).as_posix() if inside else utterance.file.as_posix()


def _samples(file: pathlib.Path, rate: int) -> np.ndarray:
    return read_audio(file, rate).samples
