"""Report sections on recordings: what a model heard when, and its errors."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from evals.base import Evaluation
from evals.error_rates import RATES, Edit, ErrorCounts, Labels
from evals.recordings import Heard, Transcribed
from evals.report.page import COLORS, INK, figure_svg, plot, render, sound, titled
from evals.transcripts import SPACE
from train.formats import DataError

WORST, SPEAKERS = 10, 40
"""Most utterances and speakers shown."""
MOST_SOUND = 2_000_000
"""Most characters of the sounds in a section."""
WIDTH, HEIGHT, PER_SECOND, REM = 10, 5.6, 2.5, 4.4
"""A picture's least width, height, and width per second, in inches; an inch is REM rem."""
BINS, FEWEST = 6, 10
"""Bins of lengths; fewest recordings per bin."""
OPEN_BOX = "␣"
"""Shown for a space that is wrong or missing."""


class Segment(NamedTuple):
    """A label or word of the reference, and its steps in the alignment, without ``after``.

    wrong: whether it has an error in the transcript.
    """

    text: str
    first: int
    after: int
    wrong: bool


def example_utterance(evaluation: Evaluation) -> str | None:
    """The chosen recording: features, probabilities, the alignment, and the transcript."""
    measured = _transcribed(evaluation)
    row = evaluation.example
    (found,) = measured.pictures.hear(evaluation.table, [row])
    svg, width = _picture(measured, row, found, "Utterance")
    log_mel = measured.features.kind == "log_mel"
    body = render(
        "utterance.html",
        example=row,
        split=evaluation.split,
        speaker=measured.speakers[row] if measured.speakers else "",
        values="log-mel spectrum" if log_mel else "cepstral coefficients",
        about=measured.pictures.about,
        wrong=bool(measured.counts and measured.counts.errors[row]),
        svg=svg,
        width=width,
        sound=_sound(evaluation, row),
        items=_texts(evaluation, row).items(),
    )
    return titled("An utterance", body)


def _picture(measured: Transcribed, row: int, heard: Heard, name: str) -> tuple[str, str]:
    """The picture of a recording as SVG, and its least width in rem.  name: see ``figure_svg``."""
    pictures, features, outputs = measured.pictures, measured.features, heard.outputs
    edits = measured.counts.edits[row] if measured.counts else []
    wrong = wrong_labels(
        [edit.transcript for edit in edits],
        edits,
        [pictures.counted[spike.label] for spike in heard.found],
    )
    missed = wrong_labels(
        [edit.reference for edit in edits], edits, [pictures.counted[i] for i in heard.reference]
    )
    shown = sorted({spike.label for spike in heard.found} | set(heard.reference))
    colors = {label: f"C{index % 10}" for index, label in enumerate(shown)}
    seconds, step = len(heard.frames) * features.hop, pictures.step
    width = max(WIDTH, PER_SECOND * seconds)

    def draw(figure: Any) -> None:
        above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(6, 4, 2))
        above.imshow(
            heard.frames.T, origin="lower", aspect="auto", cmap="magma",
            interpolation="none", extent=(0, seconds, 0, heard.frames.shape[1]),
            vmin=-2.5, vmax=2.5,
        )  # fmt: skip
        above.set_ylabel("mel bands" if features.kind == "log_mel" else "coefficients")
        times = (np.arange(len(outputs)) + 0.5) * step
        if pictures.background is not None:
            middle.plot(times, outputs[:, pictures.background], color="#9aa3ad", linewidth=1)
        for label in shown:
            middle.plot(times, outputs[:, label], color=colors[label], linewidth=1.4)
        texts = [_visible(pictures.names[spike.label]) for spike in heard.found]
        centres = [times[spike.step] for spike in heard.found]
        _write(middle, texts, centres, wrong, (1.08, 1.22), width / seconds)
        middle.set(xlim=(0, seconds), ylim=(0, 1.36), yticks=(0, 0.5, 1), ylabel="probability")
        # Words are in a line below their letters.
        lowest = 0 if measured.units == "characters" else 1
        below.set(ylim=(lowest, 3), yticks=(), xlabel="seconds")
        if heard.places is None:
            below.text(seconds / 2, 1.8, "too short for the reference", ha="center")
        else:
            labels = [pictures.names[label] for label in heard.reference]
            letters = segments(heard.places, labels, missed)
            # A gap of a pixel separates neighbours of the same colour.
            gap = seconds / width / 72
            for label, each in zip(heard.reference, letters, strict=True):
                begin, duration = each.first * step, (each.after - each.first) * step
                below.broken_barh([(begin, duration - gap)], (1.2, 0.25), color=colors[label])
            texts = [_visible(label) for label in labels]
            centres = [(each.first + each.after) / 2 * step for each in letters]
            _write(below, texts, centres, missed, (1.68, 2.35), width / seconds)
            for each in words(letters) if measured.units == "characters" else ():
                begin, duration = each.first * step, (each.after - each.first) * step
                below.broken_barh([(begin, duration)], (0.1, 0.85), color="#9aa3ad", alpha=0.3)
                below.text(
                    begin + duration / 2, 0.5, each.text, ha="center", va="center_baseline",
                    fontsize=9, color=COLORS["validation"] if each.wrong else INK, parse_math=False,
                )  # fmt: skip
        for axes in (above, middle, below):
            axes.spines[["top", "right"]].set_visible(False)
        below.spines["left"].set_visible(False)

    return figure_svg(name, draw, (width, HEIGHT)), f"{REM * width:g}"


def _visible(label: str) -> str:
    return label.replace(SPACE, OPEN_BOX)


def _write(
    axes: Any,
    texts: Sequence[str],
    centres: Sequence[float],
    wrong: Sequence[bool],
    heights: tuple[float, float],
    per_second: float,
) -> None:
    """Writes labels at times, on a second line above where they would touch.

    per_second: inches of the picture per second.
    """
    size = 9
    lines = staggered(
        centres, [(0.65 * len(text) + 0.2) * size / 72 / per_second for text in texts]
    )
    for text, centre, bad, line in zip(texts, centres, wrong, lines, strict=True):
        axes.text(
            centre, heights[line], text, ha="center", fontsize=size,
            color=COLORS["validation"] if bad else INK, parse_math=False,
        )  # fmt: skip


def staggered(centres: Sequence[float], widths: Sequence[float]) -> list[int]:
    """Which of two lines each text goes to so that few of them touch: the first, if it has room."""
    ends, lines = [-math.inf, -math.inf], []
    for centre, width in zip(centres, widths, strict=True):
        begin = centre - width / 2
        line = 0 if begin >= ends[0] or ends[0] <= ends[1] else 1
        ends[line] = centre + width / 2
        lines.append(line)
    return lines


def segments(places: np.ndarray, labels: Sequence[str], wrong: Sequence[bool]) -> list[Segment]:
    """Where each label of the reference lies.  places: int [steps], see ``Aligned``."""
    at = [np.flatnonzero(places == place) for place in range(len(labels))]
    return [
        Segment(label, int(steps[0]), int(steps[-1]) + 1, bad)
        for label, steps, bad in zip(labels, at, wrong, strict=True)
    ]


def words(letters: Sequence[Segment]) -> list[Segment]:
    """The words between spaces, from the beginning of the first letter to the end of the last."""
    groups = itertools.groupby(letters, lambda each: each.text == SPACE)
    return [
        Segment(
            "".join(each.text for each in word), word[0].first, word[-1].after,
            any(each.wrong for each in word),
        )
        for word in (list(group) for is_space, group in groups if not is_space)
    ]  # fmt: skip


def wrong_labels(
    parts: Sequence[Labels], edits: Sequence[Edit], counted: Sequence[bool]
) -> list[bool]:
    """Whether each label of a transcript or a reference is an error.

    parts: its labels in each of the edits.  counted: whether each label counts at all.
    """
    flags = (edit.kind != "equal" for edit, part in zip(edits, parts, strict=True) for _ in part)
    return [each and next(flags, False) for each in counted]


def worst_utterances(evaluation: Evaluation) -> str | None:
    """The recordings with most errors, with sound."""
    measured = _transcribed(evaluation)
    counts = measured.counts
    if counts is None or not counts.errors.any():
        return None
    order = np.lexsort((counts.labels, -counts.errors))[:WORST].tolist()
    order = [row for row in order if counts.errors[row]]
    utterances, size = [], 0
    heard = measured.pictures.hear(evaluation.table, order)
    for row, found in zip(order, heard, strict=True):
        svg, width = _picture(measured, row, found, f"Worst utterance {row}")
        player = _sound(evaluation, row)
        size += len(player or "")
        utterances.append(
            {
                "example": row,
                "speaker": measured.speakers[row] if measured.speakers else "",
                "errors": f"{counts.errors[row]:,}",
                "labels": f"{counts.labels[row]:,}",
                "sound": player if size <= MOST_SOUND else None,
                "svg": svg,
                "width": width,
            }
            | _texts(evaluation, row)
        )
    units = measured.units
    wrong = int((counts.errors > 0).sum())
    intro = (
        f"{wrong:,} of {len(counts.errors):,} transcripts differ from the reference.  Those with "
        f"the most errors, each with the numbers of errors and of {units} in the reference, the "
        "reference, and the transcript below it."
    )
    body = render("utterances.html", intro=intro, utterances=utterances)
    return titled("Worst transcripts", body)


def by_speaker_and_length(evaluation: Evaluation) -> str | None:
    """Error rates of the speakers, and of short and long recordings."""
    measured = _transcribed(evaluation)
    if measured.counts is None:
        return None
    rates = by_speaker(measured.counts, measured.speakers)
    lengths, units = by_length(measured.counts.labels), measured.units
    rate = RATES[units]
    sentences, rows, svg = [], [], None
    if len(rates) > 1:
        most = max(max(rates.values()), 1e-9)
        shown = list(rates.items())[:SPEAKERS]
        sentences.append(
            f"{rate} of each speaker, with errors / {units} and recordings"
            + (f"; the {SPEAKERS} highest of {len(rates)}." if len(rates) > SPEAKERS else ".")
        )
        for name, value in shown:
            each = measured.counts.of(_rows_of(measured.speakers, name))
            counts = f"{each.errors.sum():,} / {each.labels.sum():,}, {len(each.errors):,}"
            width = f"{100 * value / most:.1f}"
            rows.append({"name": name, "width": width, "rate": f"{value:.1f}", "counts": counts})
    if len(lengths) > 1:
        sentences.append(
            "Recordings by length: "
            + ", ".join(f"{name} {units}: {len(rows)}" for name, rows in lengths.items())
            + "."
        )
        values = [measured.counts.of(rows).rate for rows in lengths.values()]

        def draw(axes: Any) -> None:
            axes.plot(list(lengths), values, "o-", color=COLORS["train"], markersize=4)
            axes.set_xlabel(f"{units} in the reference")
            axes.set_ylim(bottom=0)

        svg = plot(f"{rate} %", draw)
    if not rows and svg is None:
        return None
    body = render("speakers.html", intro="  ".join(sentences), speakers=rows, svg=svg)
    return titled("Errors by speaker and length", body)


def by_speaker(counts: ErrorCounts, speakers: Sequence[str]) -> dict[str, float]:
    """The rate of each speaker with labels that count, highest first."""
    rates = {name: counts.of(_rows_of(speakers, name)).rate for name in sorted(set(speakers))}
    known = [(name, rate) for name, rate in rates.items() if math.isfinite(rate)]
    return dict(sorted(known, key=lambda item: -item[1]))


def by_length(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Rows in bins of lengths: {"1-4": rows, ...}.

    There are at most BINS.  They have about the same number of rows, FEWEST or more on average;
    rows of the same length stay together.
    """
    bins = max(min(BINS, len(lengths) // FEWEST), 1)
    order = np.sort(lengths)
    uppers = np.unique(order[[len(order) * (1 + index) // bins - 1 for index in range(bins)]])
    number = np.searchsorted(uppers, lengths)
    named = {}
    for index in range(len(uppers)):
        rows = np.flatnonzero(number == index)
        low, high = int(lengths[rows].min()), int(uppers[index])
        named[f"{low}-{high}" if low < high else str(low)] = rows
    return named


def marked(edits: Sequence[Edit], between: str) -> str:
    """HTML of a transcript with its errors marked.  between: two labels."""

    def shown(labels: Labels, visible: bool) -> str:
        text = between.join(labels)
        return text.replace(SPACE, OPEN_BOX) if visible and not between else text

    pieces = [
        (
            edit.kind,
            shown(edit.transcript, edit.kind != "equal"),
            shown(edit.reference, True),
        )
        for edit in edits
    ]
    return render("edits.html", edits=pieces, between=between)


def _texts(evaluation: Evaluation, row: int) -> dict[str, str]:
    """The reference and the transcript of a recording, as HTML."""
    measured = _transcribed(evaluation)
    between = "" if measured.units == "characters" else SPACE
    transcript = between.join(measured.transcripts[row])
    if measured.counts is not None:
        transcript = marked(measured.counts.edits[row], between)
    return {"reference": between.join(measured.references[row]), "transcript": transcript}


def _sound(evaluation: Evaluation, row: int) -> str | None:
    """A player of a recording; None if it cannot be read or is too long."""
    recordings = evaluation.table.extras.get("recordings")
    if recordings is None:
        return None
    try:
        samples = recordings.read(row)
    except (DataError, OSError):
        return None
    player = sound(samples, _transcribed(evaluation).features.rate)
    return player if len(player) <= MOST_SOUND else None


def _rows_of(speakers: Sequence[str], name: str) -> np.ndarray:
    return np.flatnonzero(np.asarray(speakers) == name)


def _transcribed(evaluation: Evaluation) -> Transcribed:
    assert isinstance(evaluation.measured, Transcribed)
    return cast(Transcribed, evaluation.measured)
