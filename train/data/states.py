"""states:CORPUS: frames of speech, each labelled with the state of a phone that it is in.

CORPUS is the one-word form of recordings whose words or phones are known: an4, speech:PATH,
librispeech:DIR or timit:DIR.  There is nothing but the words to learn the states from:
``train.alignment`` trains a hidden Markov model with them and aligns every recording.

An example is a frame with its neighbours: inputs float32 [n, context, values], first to last frame
of the first recording, of the second, ...; at its ends, the outermost frame is repeated.  Targets
are int32 [n], see ``train.tasks.States``.  The examples of a report are the recordings, of which
the frames are ``parts``: extras are those of ``train.acoustic`` for each recording, and "phones",
its reference.  The targets may be replaced by those of a network, see
``train.recipe.Recipe.relabel``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from train import alignment
from train.acoustic import (
    Sounds,
    Spoken,
    described,
    moments_of,
    normalised,
    require_some,
    usable,
    windows,
)
from train.alignment import Words
from train.data import speech, timit
from train.data.base import Finder, Form, Recordings, named, path_after
from train.data.speech import Corpus, Recorded
from train.dataset import Bad, Dataset, Outputs, Table
from train.tasks import States

SILENCE = "SIL"
"""The phone of silence, where the transcripts have none."""
CORPORA = speech.FORMS | timit.FORMS
"""One-word forms of the corpora."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recordings):
    """Frames with states."""

    kind: ClassVar[str] = "states"
    identity: ClassVar[tuple[str, ...]] = ("corpus", "dictionary")
    counts: ClassVar[tuple[str, ...]] = (*Recordings.counts, "context", "states")
    corpus: str = "an4"
    """The recordings: an4, an4:DIR, speech:PATH, librispeech:DIR or timit:DIR."""
    dictionary: str = ""
    """Pronouncing dictionary: a word and its phones per line.  AN4 and TIMIT need none."""
    units: str = "phones"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What the states are of: phones."""
    features: str = "mfcc"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Of a frame: log-mel spectra (log_mel), or cepstral coefficients (mfcc)."""
    deltas: int = 2  # pyright: ignore[reportIncompatibleVariableOverride]
    """1 appends the change of each value over time, 2 also the change of that."""
    context: int = 11
    """Frames that the network sees at once, an odd number."""
    states: int = 3
    """States of each phone."""
    labelled: float = 1.0
    """Share of the training recordings that are used.  The first stages of a recipe may use all."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        if self.units != "phones":
            raise ValueError(f"data.units={self.units!r}, allowed: 'phones'")
        if self.context % 2 == 0:
            raise ValueError(f"data.context={self.context!r}, allowed: an odd number")
        if not 0 < self.labelled <= 1:
            raise ValueError(f"data.labelled={self.labelled!r}, allowed: above 0, at most 1")
        self.source  # noqa: B018 (checks its fields)

    @property
    def source(self) -> speech.Config | timit.Config:
        """The Config of the corpus."""
        word = self.corpus.partition(":")[0]
        if word not in CORPORA:
            allowed = ", ".join(form.shown for form in CORPORA.values())
            raise ValueError(f"data.corpus={self.corpus!r}, allowed: {allowed}")
        source: Any = CORPORA[word].parse(self.corpus[len(word) :])
        settings = {"units": "phones"} | (
            {"dictionary": self.dictionary} if self.dictionary else {}
        )
        return dataclasses.replace(source, **settings)

    def __str__(self) -> str:
        return f"states:{self.corpus}"


FORMS = {
    "states": Form(
        "states:CORPUS",
        "frames of an4, speech:PATH, librispeech:DIR or timit:DIR, with states of phones",
        path_after(lambda path: Config(corpus=path)),
    )
}


_RECORDINGS: dict[str, Recorded] = {"speech": speech.recordings, "timit": timit.recordings}


class _Sentences(NamedTuple):
    """Recordings of a split, and for each its normalised frames and the phones of its words."""

    spoken: Sequence[Spoken]
    frames: Sequence[np.ndarray]
    words: Sequence[Words]

    def at(self, rows: Sequence[int]) -> "_Sentences":
        """Some of the recordings."""
        return _Sentences(
            [self.spoken[row] for row in rows],
            [self.frames[row] for row in rows],
            [self.words[row] for row in rows],
        )


def load(cfg: Config, find: Finder) -> Dataset:
    """Windows of frames and their states, see the module."""
    known, bad, source = find.task_of(States, cfg), Bad(), cfg.source
    front_end, states = (known.features, known.states) if known else (cfg.front_end, cfg.states)
    read = _RECORDINGS[source.kind]
    corpus = read(source, find, bad, units="phones", rate=front_end.rate)

    def least(spoken: Spoken) -> int:
        return states * sum(min(map(len, word)) for word in corpus.pronounced(spoken))

    kept, frames = usable(corpus.spoken, front_end, bad, least)
    bad.check(named(cfg), cfg)
    require_some(named(cfg), kept)
    over = known.normalise if known else cfg.normalise
    moments = known.moments if known else moments_of(frames["train"], over)
    phones, silence = (known.phones, known.silence) if known else _phones(kept["train"], corpus)
    number = {phone: index for index, phone in enumerate(phones)}
    splits: dict[str, _Sentences] = {}
    for split, spoken in kept.items():
        scaled = normalised(frames[split], [each.speaker for each in spoken], over, moments)
        words, rows = [], []
        for row, each in enumerate(spoken):
            pronounced = corpus.pronounced(each)
            if unknown := sorted({p for word in pronounced for v in word for p in v} - {*phones}):
                shown = ", ".join(map(repr, unknown[:5]))
                bad.add(f"phones that are not in training ({shown})", each.name)
            else:
                rows.append(row)
            words.append([[[number.get(p, 0) for p in v] for v in word] for word in pronounced])
        splits[split] = _Sentences(spoken, scaled, words).at(rows)
    bad.check(named(cfg), cfg)
    if "train" in splits:
        # Evenly spaced, and so of all speakers.
        counts = np.floor(np.arange(len(splits["train"].spoken) + 1) * cfg.labelled + 1e-9)
        splits["train"] = splits["train"].at(np.flatnonzero(np.diff(counts)).tolist())
    require_some(named(cfg), {split: each.spoken for split, each in splits.items()})
    task = known or _fitted(cfg, splits["train"], phones, silence, corpus.scored, moments)
    tables = {split: _windows(task, each) for split, each in splits.items()}
    unlabelled = Dataset(str(cfg), tables, task)
    lengths = {split: np.array(list(map(len, each.frames))) for split, each in splits.items()}
    gaussians = alignment.Gaussians(np.array(task.means), np.array(task.variances))
    scores = {split: gaussians.log_p(each.frames) for split, each in splits.items()}
    paths = _aligned(task, splits, scores)
    dataset = dataclasses.replace(
        unlabelled,
        notes=tuple(
            described(task, {split: each.spoken for split, each in splits.items()}, lengths, bad)
        ),
        identity=unlabelled.fingerprint,
    )
    return _labelled(dataset, splits, paths)


def _phones(spoken: Sequence[Spoken], corpus: Corpus) -> tuple[tuple[str, ...], int | None]:
    """The phones of the training words, and which of them is silence."""
    words = (word for each in spoken for word in corpus.pronounced(each))
    phones = sorted({phone for word in words for variant in word for phone in variant})
    return ((*phones, SILENCE), len(phones)) if corpus.pauses else (tuple(phones), None)


def _fitted(
    cfg: Config,
    train: _Sentences,
    phones: tuple[str, ...],
    silence: int | None,
    scored: Mapping[str, str],
    moments: tuple[tuple[float, ...], ...],
) -> States:
    """The task of the training split: Gaussians from a flat start, and transitions."""
    count, states = len(phones), cfg.states
    gaussians = alignment.flat_start(
        train.frames, train.words, phones=count, states=states, silence=silence
    )
    stay = np.full((count, states), np.log(0.5))
    lengths = list(map(len, train.frames))
    paths = alignment.aligner(train.words, lengths, stay, silence=silence)(
        gaussians.log_p(train.frames)
    )
    task = States(
        phones=phones,
        silence=silence,
        states=states,
        features=cfg.front_end,
        normalise=cfg.normalise,
        context=cfg.context,
        means=_plain(gaussians.mean),
        variances=_plain(gaussians.variance),
        log_stay=(),
        log_bigram=(),
        log_prior=(),
        moments=moments,
        scored=tuple(scored.get(phone, phone) for phone in phones) if scored else (),
    )
    return _with_transitions(task, paths)


def _with_transitions(task: States, paths: Sequence[np.ndarray]) -> States:
    found = alignment.transitions(paths, phones=len(task.phones), states=task.states)
    return dataclasses.replace(
        task,
        log_stay=_plain(found.log_stay),
        log_bigram=_plain(found.log_bigram),
        log_prior=_plain(found.log_prior),
    )


def _plain(values: np.ndarray) -> Any:
    """An array as tuples of numbers."""
    return tuple(map(_plain, values)) if values.ndim else float(values)


def _windows(task: States, sentences: _Sentences) -> Table:
    """The unlabelled table of a split."""
    extras = {
        "texts": tuple(each.text for each in sentences.spoken),
        "speakers": tuple(each.speaker for each in sentences.spoken),
        "recordings": Sounds.of(sentences.spoken),
        "phones": tuple(each.labels for each in sentences.spoken),
    }
    columns = {"inputs": windows(sentences.frames, task.context)}
    return Table(columns, extras=extras, parts=tuple(map(len, sentences.frames)))


def _aligned(
    task: States,
    splits: Mapping[str, _Sentences],
    scores: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, list[np.ndarray]]:
    """The state of each frame, by split.  scores: of the states, see ``alignment.aligner``."""
    paths = {}
    for split, each in splits.items():
        lengths = list(map(len, each.frames))
        align = alignment.aligner(
            each.words, lengths, np.array(task.log_stay), silence=task.silence
        )
        paths[split] = align(scores[split])
    return paths


def _labelled(
    dataset: Dataset, splits: Mapping[str, _Sentences], paths: Mapping[str, list[np.ndarray]]
) -> Dataset:
    """The data with these states as targets."""
    task = dataset.task
    assert isinstance(task, States)

    def relabel(outputs: Outputs) -> Dataset:
        """The data aligned by a network.  outputs: logits of the states."""
        scores = {}
        for split, table in dataset.tables.items():
            log_p = np.asarray(jax.nn.log_softmax(outputs(table))) - np.array(task.log_prior)
            scores[split] = np.split(log_p, np.cumsum(table.parts)[:-1])
        paths = _aligned(task, splits, scores)
        again = dataclasses.replace(dataset, task=_with_transitions(task, paths["train"]))
        return _labelled(again, splits, paths)

    tables = {
        split: table.having(targets=np.concatenate(paths[split]).astype(np.int32))
        for split, table in dataset.tables.items()
    }
    return dataclasses.replace(dataset, splits=tables, relabel=relabel)
