"""Translation: the translations of a model, their BLEU, and its attention."""

import contextlib
import dataclasses
import functools
import html
import itertools
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.generation import (
    BEAM,
    LENGTH_PENALTY,
    NEEDS_BLEU,
    Generated,
    bleu,
    has_bleu,
    require_search,
    search,
)
from evals.metrics import is_whole
from evals.report.page import plot, render, titled
from evals.report.points import labelled_map, tsne
from evals.run import Run
from evals.runs import COLORS
from train import formats, tasks
from train.engine.run_folder import write_text
from train.formats import DataError
from train.tokens import END, SPACE, packed, pieces
from zoo.base import Conditional, Model, Params

TASK = tasks.Translation
ROWS, STEP = 32, 8
"""Sentences translated at a time; padded lengths are multiples of STEP tokens."""
BINS = (0, 8, 10, 12, 14, 17, math.inf)
"""Bins of source lengths in words: above one bound, up to and including the next."""
FEWEST = 20
"""Minimum number of sentences in a bin: BLEU of fewer is meaningless."""
SHOWN, ALIGNED, PHRASES = 8, 4, 200
CELL = 20
"""Side of a square in an alignment plot, in pixels."""
LINES = 256
"""Lines of a file translated at a time."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Translated(Measured):
    """pairs: source and target of each example.  translations: one for each source."""

    pairs: Sequence[tuple[str, str]]
    translations: list[Generated]


def task_of(run: Run) -> tasks.Translation:
    """The run's task.  Raises DataError if it is not translation."""
    if not isinstance(run.task, TASK):
        verbs.require(run, "translate", {})
    assert isinstance(run.task, TASK)
    return run.task


def translate(
    run: Run,
    sentences: Sequence[str],
    *,
    beam: int = BEAM,
    length_penalty: float = LENGTH_PENALTY,
    rows: int | None = None,
) -> list[Generated]:
    """The best translation of each sentence from a beam search; "" for a sentence without words.

    rows: sentences translated at a time; default: ROWS, or the number of sentences if that is less.
        The search is compiled for each ``rows`` and padded length, so pass the same number with
        several lists.
    Raises DataError naming the run's folder unless its model translates, ValueError naming what is
    out of range.
    """
    task = task_of(run)
    require_search(len(task.target.vocabulary), beam, length_penalty)
    if rows is not None and not (is_whole(rows) and rows >= 1):
        raise ValueError(f"rows={rows!r}, allowed: a positive integer")
    sources = [[*task.source.encode(sentence), END] for sentence in sentences]
    order = sorted(
        (index for index, source in enumerate(sources) if len(source) > 1),
        key=lambda index: len(sources[index]),
    )
    results = [Generated("", np.zeros(0, np.int32), 0.0)] * len(sentences)
    rows = min(ROWS, max(len(order), 1)) if rows is None else rows
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        group = [sources[index] for index in chosen]
        width = -(-max(map(len, group)) // STEP) * STEP
        lengths = np.array([len(source) for source in group], np.int32)
        table = {"inputs": {"source": packed(group, width), "lengths": lengths}}
        written = run.map(_searching(3 * width, beam, length_penalty), table, rows=rows)
        tokens, counts, scores = (leaf[:, 0] for leaf in written)
        for row, index in enumerate(chosen):
            ids = tokens[row, : counts[row]]
            results[index] = Generated(task.target.decode(ids), ids, float(scores[row]))
    return results


def _searching(longest: int, beam: int, length_penalty: float) -> Any:
    def function(module: Any, cfg: Any, params: Params, batch: Any) -> Any:
        return search(module, cfg, params, batch["inputs"], longest, beam, length_penalty)

    return function


def measure(subject: Subject) -> Translated:
    """The metrics of the loss, "BLEU", "perplexity" per target token, and "exact %".

    A translation is exact if it equals the reference up to white space.
    """
    run, pairs = subject.run, subject.table.extras["sentences"]
    translations = translate(run, [source for source, _ in pairs])
    targets = [" ".join(target.split()) for _, target in pairs]
    exact = np.mean(
        [
            translation.text == target
            for translation, target in zip(translations, targets, strict=True)
        ]
    )
    with np.errstate(over="ignore"):  # infinite if the model diverged
        perplexity = float(np.exp(subject.means["loss"]))
    named, note = {"exact %": 100 * float(exact), "perplexity": perplexity}, NEEDS_BLEU
    if has_bleu():
        score, signature = bleu([translation.text for translation in translations], targets)
        named = {"BLEU": score} | named
        note = f"BLEU: sacrebleu {signature}, beam {BEAM}, length penalty {LENGTH_PENALTY:g}"
    return Translated(
        metrics=subject.losses | subject.named(named),
        note=note,
        shares=subject.named({"exact %": len(translations)}),
        pairs=pairs,
        translations=translations,
    )


def by_length(
    sentences: Sequence[tuple[str, str]], translations: Sequence[Generated]
) -> dict[str, tuple[int, float]]:
    """BLEU by the number of words in the source: {"9-10": (sentences, BLEU), ...}.

    Bins with fewer than FEWEST sentences are left out.
    Raises ValueError unless each sentence has a translation.
    """
    if len(sentences) != len(translations):
        raise ValueError(
            f"{len(translations)} translations of {len(sentences)} sentences, "
            "allowed: the same number"
        )
    words = np.array(
        [
            len([piece for piece in pieces("words", source) if any(map(str.isalnum, piece))])
            for source, _ in sentences
        ]
    )
    scores = {}
    for low, high in itertools.pairwise(BINS):
        rows = np.flatnonzero((words > low) & (words <= high)).tolist()
        if len(rows) >= FEWEST:
            name = f"{low + 1:g}-{high:g}" if high < math.inf else f"{low + 1:g} or more"
            score, _ = bleu(
                [translations[row].text for row in rows], [sentences[row][1] for row in rows]
            )
            scores[name] = (len(rows), score)
    return scores


def lengths_plot(runs: dict[str, dict[str, tuple[int, float]]]) -> str:
    """SVG of BLEU against source length for several runs (Bahdanau et al. 2014, figure 2)."""

    def lines(axes: Any) -> None:
        for color, (name, bins) in zip(COLORS, runs.items(), strict=False):
            axes.plot(
                list(bins),
                [score for _, score in bins.values()],
                "o-",
                color=color,
                label=name,
                markersize=4,
            )
        axes.set_xlabel("words in the source")
        axes.set_ylim(bottom=0)
        if len(runs) > 1:
            axes.legend(fontsize=9)

    return plot("BLEU", lines)


def attention(run: Run, source: str, tokens: np.ndarray) -> np.ndarray | None:
    """Attention weights, float32 [time, source tokens], for these output tokens.

    None for a model without attention.
    """
    ids = [*task_of(run).source.encode(source), END]
    before = np.concatenate([[END], tokens[:-1]]).astype(np.int32)
    inputs = {
        "source": np.array([ids], np.int32),
        "lengths": np.array([len(ids)], np.int32),
        "target": before[None],
    }
    _, intermediates = _trace(run.module, run.recipe.model, run.params, inputs)
    return (
        np.asarray(intermediates["attention"][0], np.float32)
        if "attention" in intermediates
        else None
    )


@functools.partial(jax.jit, static_argnums=0)
def _trace(module: Model, cfg: Any, params: Params, inputs: Any) -> Any:
    return module.trace(cfg, params, inputs)


def alignment(run: Run, source: str, translation: Generated) -> str | None:
    """SVG of ``attention``: rows are tokens of the translation, columns tokens of the source.

    As in figure 3 of Bahdanau et al. (2014).
    """
    weights = attention(run, source, translation.tokens) if len(translation.tokens) else None
    if weights is None:
        return None
    task = task_of(run)
    coded = {
        "source": [*task_of(run).source.encode(source), END],
        "target": translation.tokens.tolist(),
    }
    columns, rows = (
        [getattr(task, side).vocabulary[token].lstrip(SPACE) or SPACE for token in tokens]
        for side, tokens in coded.items()
    )
    left, top = (10 + 8 * max(map(len, names)) for names in (rows, columns))
    width, height = left + CELL * len(columns) + 4, top + CELL * len(rows) + 4
    marks = []
    for index, name in enumerate(columns):
        x, y = left + CELL * (index + 0.5) + 4, top - 6
        marks.append(
            f'<text transform="translate({x:g} {y:g}) rotate(-90)">{html.escape(name)}</text>'
        )
    for index, name in enumerate(rows):
        y = top + CELL * (index + 0.5) + 4
        marks.append(f'<text x="{left - 6}" y="{y:g}" text-anchor="end">{html.escape(name)}</text>')
        for column, weight in enumerate(weights[index]):
            box = (
                f'x="{left + CELL * column}" y="{top + CELL * index}" '
                f'width="{CELL - 1}" height="{CELL - 1}"'
            )
            title = (
                f"<title>{html.escape(name)}, {html.escape(columns[column])}: {weight:.2f}</title>"
            )
            marks.append(
                f'<rect {box} fill="#4c8dff" fill-opacity="{max(float(weight), 0.04):.2f}">'
                f"{title}</rect>"
            )
    style = (
        f"width: {width}px; max-width: 100%; fill: currentColor; font: 13px system-ui, sans-serif"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="{style}" role="img"'
    )
    return f'{head} aria-label="{html.escape(source)}">{"".join(marks)}</svg>'


def _translated(evaluation: Evaluation) -> Translated:
    assert isinstance(evaluation.measured, Translated)
    return evaluation.measured


def translations(evaluation: Evaluation) -> str | None:
    """Sources, translations and references: evenly spaced examples, and the worst translations."""
    generated, sentences = _translated(evaluation).translations, _translated(evaluation).pairs
    chosen = (
        np.linspace(0, len(generated) - 1, min(SHOWN, len(generated))).round().astype(int).tolist()
    )
    import sacrebleu

    scores = [
        sacrebleu.sentence_chrf(translation.text, [target]).score
        for translation, (_, target) in zip(generated, sentences, strict=True)
    ]
    worst = [
        index
        for index in np.argsort(scores, kind="stable")[:SHOWN].tolist()
        if generated[index].text != sentences[index][1]
    ]
    farthest = "Farthest from the reference (lowest chrF, a character n-gram F-score)"
    groups = {
        title: [(row, sentences[row][0], generated[row].text, sentences[row][1]) for row in rows]
        for title, rows in {"Evenly spaced": chosen, farthest: worst}.items()
    }
    return titled("Translations", render("translations.html", groups=groups))


def alignments(evaluation: Evaluation) -> str | None:
    """Alignments of the chosen example and the next ones."""
    generated, sentences = _translated(evaluation).translations, _translated(evaluation).pairs
    rows = range(evaluation.example, min(evaluation.example + ALIGNED, len(generated)))
    drawn = {row: alignment(evaluation.run, sentences[row][0], generated[row]) for row in rows}
    plots = {row: svg for row, svg in drawn.items() if svg is not None}
    return titled("Alignments", render("alignments.html", plots=plots)) if plots else None


def lengths(evaluation: Evaluation) -> str | None:
    """BLEU by the length of the source."""
    bins = by_length(_translated(evaluation).pairs, _translated(evaluation).translations)
    if not bins:
        return None
    counts = ", ".join(f"{name}: {count}" for name, (count, _) in bins.items())
    intro = (
        f"BLEU by the number of words in the source (sentences per bin: {counts}).  Without "
        "attention, it falls for long sentences, because a single vector has to represent the "
        "whole sentence (Bahdanau et al. 2014, figure 2)."
    )
    svg = lengths_plot({evaluation.run.recipe.name: bins})
    return titled("Long sentences", render("lengths.html", intro=intro, svg=svg))


def phrases(evaluation: Evaluation) -> str | None:
    """2D map of frequent phrases by their encoder states.

    As in figure 4 (right) of LeCun, Bengio, Hinton (2015).
    """
    chosen = frequent_phrases([source for source, _ in _translated(evaluation).pairs], PHRASES)
    if len(chosen) < 10:  # too few for t-SNE's neighbourhoods
        return None
    run = evaluation.run
    sources = [[*task_of(run).source.encode(phrase), END] for phrase in chosen]
    inputs = {
        "source": packed(sources, max(map(len, sources))),
        "lengths": np.array(list(map(len, sources)), np.int32),
    }
    memory, _ = jax.jit(cast(Conditional, run.module).encode)(run.recipe.model, run.params, inputs)
    vectors = np.asarray(memory.summary, np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    svg, bare = labelled_map(tsne(vectors.astype(np.float32)), chosen, "Map of phrases")
    intro = (
        f"The {len(chosen)} most frequent phrases of two to four words in the sources of the "
        f"{evaluation.split} split: t-SNE of the encoder's last state (both directions), as in "
        "figure 4 of LeCun, Bengio, Hinton (2015).  Phrases with similar meaning or structure "
        f"should lie close together.{bare}"
    )
    return titled("Map of phrases", render("map.html", intro=intro, svg=svg))


def frequent_phrases(sources: Sequence[str], count: int) -> list[str]:
    """The most frequent phrases of two to four consecutive words.

    A phrase is left out if most of its occurrences are part of the same longer phrase.
    """
    import collections

    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for source in sources:
        words = source.rstrip(".!? ").split()
        for size in (2, 3, 4):
            counts.update(
                tuple(words[first : first + size]) for first in range(len(words) - size + 1)
            )
    inner = {
        part: times
        for phrase, times in counts.items()
        if len(phrase) > 2
        for part in (phrase[1:], phrase[:-1])
        if times > 0.8 * counts[part]
    }
    ordered = sorted(
        (phrase for phrase in counts if phrase not in inner),
        key=lambda phrase: (-counts[phrase], phrase),
    )
    return [" ".join(phrase) for phrase in ordered[:count]]


def print_translations(run: Run, options: verbs.Translate) -> int:
    """Prints a line for each sentence; reports words that are not in the vocabulary."""
    task, sentences = task_of(run), options.sentences
    if bool(sentences) == (options.file is not None):
        raise ValueError("translate: give sentences, or a file with --file")
    if options.alignment is not None and len(sentences) != 1:
        raise ValueError(f"--alignment: {len(sentences)} sentences, allowed: 1")
    lines = iter(sentences) if options.file is None else read_lines(options.file)
    # Lines typed into a terminal are translated one by one.
    interactive = options.file == pathlib.Path("-") and sys.stdin.isatty()
    rows = None
    while group := list(itertools.islice(lines, 1 if interactive else LINES)):
        rows = rows or min(len(group), ROWS)  # one batch size for all groups: one compilation
        translations = translate(
            run, group, beam=options.beam, length_penalty=options.length_penalty, rows=rows
        )
        if unknown := task.source.unknown(group):
            words = " ".join(map(repr, unknown))
            print(f"not in the vocabulary, read as <unk>: {words}", file=sys.stderr)
        for generated in translations:
            print(generated.text, flush=True)
        if options.alignment is not None:
            svg = alignment(run, group[0], translations[0])
            if svg is None:
                why = "the model has no attention, or the sentence no word; nothing to draw"
                raise DataError(f"{run.folder.path}: {why}")
            write_text(options.alignment, svg)
    return 0


def read_lines(file: pathlib.Path) -> Iterator[str]:
    """Yields the lines of a file, plain or gzipped, or of standard input for "-".

    Raises DataError naming the line that is not UTF-8.
    """
    if file.is_file():
        yield from formats.read_lines(file)
        return
    with contextlib.ExitStack() as stack:
        stdin = file == pathlib.Path("-")
        stream = sys.stdin.buffer if stdin else stack.enter_context(file.open("rb"))
        for number, line in enumerate(stream, 1):
            yield formats.decoded(f"{file}:{number}", line).rstrip("\r\n")


SECTIONS = (translations, alignments, lengths, phrases)
VERBS = {"translate": print_translations}
