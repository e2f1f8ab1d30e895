"""Error rates of transcripts: of characters (CER), words (WER) and phones (PER).

A rate is the number of errors (substitutions, deletions and insertions of the shortest edit from
the reference to the transcript) over all utterances, divided by the number of reference labels.  It
can be above 100 %.  Edits are those of jiwer, which gets lists of labels: none of its default
transforms, which strip and split sentences, is applied.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

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
