"""Error rates of transcripts: of characters (CER), words (WER) and phones (PER).

A rate is the number of errors (substitutions, deletions and insertions of the shortest edit from
the reference to the transcript) over all utterances, divided by the number of reference labels.  It
can be above 100 %.  Edits are those of jiwer, which gets lists of labels: none of its default
transforms, which strip and split sentences, is applied.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from evals.base import Subject
from evals.intervals import DRAWS, bootstrap

RATES = {"characters": "CER", "words": "WER", "phones": "PER"}
"""The error rate of each unit."""
NEW = " of new sentences"
NORMALISED = {
    "speaker": "over the speaker's recordings in the split (transductive)",
    "utterance": "over the recording",
    "global": "over the training split",
}
"""For display: what the frames are normalised over."""
NEEDS_JIWER = "no error rates: they need jiwer: pip install 'purezoo[evals]'"
Labels = tuple[str, ...]
"""The labels of an utterance: characters, words or phones."""


def has_jiwer() -> bool:
    """Whether jiwer is installed.  It is optional: only error rates need it."""
    return importlib.util.find_spec("jiwer") is not None


class Edit(NamedTuple):
    """Consecutive labels of the reference, and what the transcript has in their place."""

    kind: Literal["equal", "substitute", "delete", "insert"]
    reference: Labels
    transcript: Labels


class ErrorCounts(NamedTuple):
    """Errors and reference labels of each utterance, int [n], and the edits."""

    errors: np.ndarray
    labels: np.ndarray
    edits: list[list[Edit]]

    @property
    def rate(self) -> float:
        """Errors per reference label, in per cent; NaN without labels."""
        total = int(self.labels.sum())
        return 100 * int(self.errors.sum()) / total if total else float("nan")

    def of(self, rows: np.ndarray) -> "ErrorCounts":
        """The counts of some utterances, by index."""
        edits = [self.edits[row] for row in rows.tolist()]
        return ErrorCounts(self.errors[rows], self.labels[rows], edits)


def count_errors(references: Sequence[Labels], transcripts: Sequence[Labels]) -> ErrorCounts:
    """The errors of transcripts.

    Raises ValueError unless there is one transcript for each reference.

    Example::

        >>> from evals.error_rates import count_errors
        >>> counts = count_errors([("ONE", "TWO"), ("SIX",)], [("ONE",), ("SIX", "TEN")])
        >>> counts.errors.tolist(), counts.labels.tolist(), round(counts.rate, 1)
        ([1, 1], [2, 1], 66.7)
    """
    import jiwer

    if len(references) != len(transcripts):
        raise ValueError(
            f"{len(transcripts)} transcripts of {len(references)} references, "
            "allowed: the same number"
        )
    pairs = list(zip(references, transcripts, strict=True))
    as_lists: Any = lambda sentences: [list(labels) for labels in sentences]  # noqa: E731
    aligned: Any = jiwer.process_words(
        references,  # pyright: ignore[reportArgumentType] (lists of labels, for this transform)
        transcripts,  # pyright: ignore[reportArgumentType]
        reference_transform=as_lists,
        hypothesis_transform=as_lists,
    )
    edits = [
        [
            Edit(
                chunk.type,
                tuple(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
                tuple(transcript[chunk.hyp_start_idx : chunk.hyp_end_idx]),
            )
            for chunk in chunks
        ]
        for chunks, (reference, transcript) in zip(aligned.alignments, pairs, strict=True)
    ]
    errors = [
        sum(max(len(e.reference), len(e.transcript)) for e in each if e.kind != "equal")
        for each in edits
    ]
    return ErrorCounts(np.array(errors, int), np.array(list(map(len, references)), int), edits)


class Rates(NamedTuple):
    """Metrics by name without the split, such as "PER % of new sentences", and their intervals."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def rates(
    counts: Mapping[str, ErrorCounts], speakers: Sequence[str], new: np.ndarray, suffix: str = ""
) -> Rates:
    """The rates of all recordings and of the ``new`` ones, unless these are all or none.

    counts: by the name of their rate.  speakers: of the recordings, for the intervals; () if they
    are not known.  new: see ``new_sentences``.  suffix: of the names.
    """
    count = len(next(iter(counts.values())).errors)
    groups = {suffix: np.arange(count)}
    if 0 < len(new) < count:
        groups[suffix + NEW] = new
    metrics, intervals = {}, {}
    for group, rows in groups.items():
        for name, each in counts.items():
            chosen, full = each.of(rows), f"{name} %{group}"
            if not chosen.labels.any():  # none of them counts
                continue
            metrics[full] = chosen.rate
            if not len(speakers):
                continue
            of_rows = [speakers[row] for row in rows.tolist()]
            ends = bootstrap(chosen.errors, chosen.labels, of_rows)
            if ends is not None:
                intervals[full] = 100 * ends[0], 100 * ends[1]
    return Rates(metrics, intervals)


def new_sentences(subject: Subject) -> tuple[np.ndarray, Sequence[str]]:
    """The recordings whose sentences do not occur in training, and the training sentences.

    All recordings, and (), if the texts are not known.
    """
    splits, texts = subject.dataset.splits, subject.table.extras.get("texts", ())
    training = [
        text
        for split in subject.run.recipe.train_on.split("+")
        if split in splits
        for text in splits[split].extras.get("texts", ())
    ]
    known = {" ".join(text.split()) for text in training}
    rows = [row for row, text in enumerate(texts) if " ".join(text.split()) not in known]
    return np.array(rows, int), training


def described_errors(counts: Mapping[str, ErrorCounts]) -> str:
    """For display: "CER: 285 errors in 2,565 characters, WER: 196 errors in 773 words"."""
    of = {name: units for units, name in RATES.items()}
    return ", ".join(
        f"{name}: {each.errors.sum():,} errors in {each.labels.sum():,} {of[name]}"
        for name, each in counts.items()
    )


def described_rates(
    counts: Mapping[str, ErrorCounts], found: Rates, speakers: Sequence[str], new: np.ndarray
) -> list[str]:
    """For display: what ``rates`` found besides the errors of all recordings."""
    notes, total = [], len(next(iter(counts.values())).errors)
    if 0 < len(new) < total:
        of = {name: each.of(new) for name, each in counts.items()}
        notes.append(f"new sentences, {len(new):,} of {total:,}: {described_errors(of)}")
    if found.intervals:
        notes.append(f"intervals: bootstrap of {len(set(speakers))} speakers, {DRAWS:,} draws")
    return notes
