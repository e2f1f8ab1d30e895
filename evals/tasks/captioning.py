"""Captioning: the captions of a model, their scores, and whether it attends to what it names.

BLEU-1 to BLEU-4 are computed by sacrebleu, from 0 to 100; CIDEr-D and ROUGE-L by
``evals.caption_metrics``, on words.

*Pointing*: while the model writes an object's name, does the location with the largest attention
weight have its centre inside that object's box?  A name is the whole noun phrase: "an" announces an
eight as much as "eight" does, so the model attends before it writes either.  Only images with an
exactly correct caption are counted, so that each name refers to a known object.  Chance is the
fraction of locations whose centre is inside the box.

For a model without attention, *saliency* replaces the weights: the absolute gradient of log p(name)
with respect to the pixels, summed over each location (Simonyan, Vedaldi, Zisserman 2013,
section 3).
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.caption_metrics import cider_d, rouge_l
from evals.files import Failures, readable
from evals.generation import (
    BEAM,
    LENGTH_PENALTY,
    NEEDS_BLEU,
    Generated,
    has_bleu,
    require_search,
    search,
)
from evals.report.page import REPORT_NEEDS, can_render, page, picture, render, strip, titled
from evals.run import Run
from train import tasks
from train.batches import Batches
from train.dataset import Table
from train.engine.run_folder import write_text
from train.formats import Images, read_image
from train.tokens import END, pieces
from zoo.base import Model, Params

TASK = tasks.Captioning

ROWS = 50
"""Images captioned at a time."""
SHOWN = 3
"""Images in each group of the report."""


class Pointing(NamedTuple):
    """Percentages of objects that the most attended location hits.

    hit: while the whole name is written.  noun: while the noun is written; NaN for saliency.
    chance: expected by chance.  objects: number of objects.
    """

    hit: float
    noun: float
    chance: float
    objects: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Captioned(Measured):
    """captions: one per image.  references: those of each image, with single spaces."""

    captions: list[Generated]
    references: list[list[str]]


def task_of(run: Run) -> tasks.Captioning:
    """The run's task.  Raises DataError if it is not captioning."""
    if not isinstance(run.task, TASK):
        verbs.require(run, "caption", {})
    assert isinstance(run.task, TASK)
    return run.task


def caption(
    run: Run,
    images: np.ndarray | Images,
    *,
    beam: int = BEAM,
    length_penalty: float = LENGTH_PENALTY,
) -> list[Generated]:
    """The best caption from a beam search for each raw image [n, height, width, channels].

    Captions have at most ``data.max_length`` tokens, as in training, and an end token.
    Raises DataError naming the run's folder unless its model writes captions, ValueError naming the
    argument that is out of range.
    """
    task = task_of(run)
    require_search(len(task.target.vocabulary), beam, length_penalty)

    def function(module: Any, cfg: Any, params: Params, batch: Any) -> Any:
        return search(
            module, cfg, params, batch["inputs"], task.max_length + 1, beam, length_penalty
        )

    written = run.map(function, {"inputs": {"image": images}}, rows=min(ROWS, len(images)))
    captions = []
    for tokens, count, score in zip(*(leaf[:, 0] for leaf in written), strict=True):
        ids = tokens[:count]
        captions.append(Generated(task.target.decode(ids), ids, float(score)))
    return captions


def measure(subject: Subject) -> Captioned:
    """The metrics of the loss and of the captions.

    "exact %": captions equal to a reference.
    "BLEU-1" to "BLEU-4", "CIDEr-D", "ROUGE-L".
    "perplexity": per token.
    If objects are known, "objects %": objects named in the caption; "pointing %" and "pointing at
    nouns %", or without attention "saliency pointing %"; and "pointing by chance %".
    """
    run, table = subject.run, subject.table
    sentences = table.extras["sentences"]
    given_references = table.extras.get("references", ())
    captions = caption(run, table["inputs"]["image"])
    references = _said(sentences, given_references)
    correct = np.array(
        [generated.text in texts for generated, texts in zip(captions, references, strict=True)]
    )
    written = [generated.text for generated in captions]
    with np.errstate(over="ignore"):  # infinite if the model diverged
        perplexity = float(np.exp(subject.means["loss"]))
    named = {"exact %": 100 * float(correct.mean()), "perplexity": perplexity}
    if table.extras.get("phrases") is not None:
        named["objects %"] = 100 * named_objects(
            table, [generated.tokens for generated in captions]
        )
    pointed = pointing(run, table, correct)
    if pointed is not None and np.isnan(pointed.noun):
        named |= {"saliency pointing %": pointed.hit, "pointing by chance %": pointed.chance}
    elif pointed is not None:
        named |= {"pointing %": pointed.hit, "pointing at nouns %": pointed.noun}
        named |= {"pointing by chance %": pointed.chance}
    words = (
        [" ".join(pieces("words", text)) for text in written],
        [[" ".join(pieces("words", text)) for text in texts] for texts in references],
    )
    named |= {
        "CIDEr-D": float(np.mean(cider_d(*words))),
        "ROUGE-L": float(np.mean(rouge_l(*words))),
    }
    note = NEEDS_BLEU
    if has_bleu():
        import sacrebleu

        for order in (1, 2, 3, 4):
            metric = sacrebleu.BLEU(max_ngram_order=order)
            named[f"BLEU-{order}"] = metric.corpus_score(written, [*zip_longest(*references)]).score
            settings = f"beam {BEAM}, length penalty {LENGTH_PENALTY:g}"
            note = f"BLEU: sacrebleu {metric.get_signature()}, {settings}"
    unique = len(set(given_references)) == len(given_references)  # no image occurs twice
    return Captioned(
        metrics=subject.losses | subject.named(named),
        note=note,
        shares=subject.named({"exact %": len(captions)}) if unique else {},
        captions=captions,
        references=references,
    )


def _said(
    sentences: Sequence[tuple[str, str]], references: Sequence[Sequence[str]]
) -> list[list[str]]:
    """The reference captions of each image, with single spaces."""
    return [
        [" ".join(text.split()) for text in texts]
        for texts in references or [[target] for _, target in sentences]
    ]


def named_objects(table: Table, written: Sequence[np.ndarray]) -> float:
    """Share of objects whose full names, with the article, occur in the captions.

    Two objects with the same name count only if it occurs twice.  Captions are parsed greedily into
    the longest known names of the table: "a duck made of rubber" does not name "a duck".
    Raises ValueError without objects, or unless there is one caption for each row.
    """
    spans = table.extras["phrases"]
    if len(written) != len(spans) or not np.any(spans[..., 1] > 0):
        raise ValueError(
            f"{len(written)} captions, allowed: one for each of {len(spans)} rows that have objects"
        )
    names = [
        collections.Counter(tuple(targets[slice(*span)].tolist()) for span in phrases if span[1])
        for targets, phrases in zip(table["targets"], spans, strict=True)
    ]
    known = set().union(*names)
    mentioned = (collections.Counter(_named(tokens.tolist(), known)) for tokens in written)
    return sum(
        (expected & mentions).total() for expected, mentions in zip(names, mentioned, strict=True)
    ) / sum(expected.total() for expected in names)


def _named(tokens: list[int], known: set[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The longest known names in a text, matched greedily from its beginning."""
    lengths, at = sorted({len(name) for name in known}, reverse=True), 0
    while at < len(tokens):
        name = next(
            (name for length in lengths if (name := tuple(tokens[at : at + length])) in known), None
        )
        if name is not None:
            yield name
        at += len(name or (0,))


def pointing(run: Run, table: Table, right: np.ndarray) -> Pointing | None:
    """Pointing on images whose captions are ``right`` [n]; None without boxes or such images."""
    rows = np.flatnonzero(right)
    names = ("boxes", "phrases", "words")
    if table.extras.get("boxes") is None or not len(rows):
        return None
    columns = {**table, **{name: table.extras[name] for name in names}}
    results = []
    for first in range(0, len(rows), ROWS):
        chosen = jax.tree.map(lambda leaf: leaf[rows[first : first + ROWS]], columns)  # noqa: B023 (used at once)
        inputs, phrases, boxes = chosen["inputs"], chosen["phrases"], chosen["boxes"]
        weights = attention(run, inputs["image"], inputs["target"])
        time = np.arange(inputs["target"].shape[1])
        naming = (time >= phrases[..., :1]) & (time < phrases[..., 1:])  # [n, objects, time]
        if weights is None:
            looked = saliency(run, inputs["image"], inputs["target"], chosen["targets"], naming)
            at_noun = np.full(boxes.shape[:2], np.nan)
        else:
            looked = np.where(naming[..., None, None], weights[:, None], 0).max(axis=2)
            at_noun = _hits(
                np.take_along_axis(weights, chosen["words"][:, :, None, None], axis=1),
                _inside(run, boxes, weights),
            )
        inside = _inside(run, boxes, looked)
        present = phrases[..., 1] > 0
        results.append(
            np.stack([_hits(looked, inside), at_noun, inside.mean(axis=(2, 3))])[:, present]
        )
    shares = 100 * np.concatenate(results, axis=1).mean(axis=1)
    hit, noun, chance = map(float, shares)
    return Pointing(hit, noun, chance, sum(result.shape[1] for result in results))


def _inside(run: Run, boxes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Which locations of weights [..., rows, columns] have centres in boxes [n, objects, 4]."""
    within = []
    for axis, (count, size) in enumerate(
        zip(weights.shape[-2:], cast(Any, run.data.input_shape), strict=False)
    ):
        centres = (np.arange(count) + 0.5) * size / count
        within.append((centres >= boxes[..., axis, None]) & (centres < boxes[..., axis + 2, None]))
    return within[0][..., :, None] & within[1][..., None, :]


def _hits(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Whether the largest weights are inside: both [n, objects, rows, columns] -> [n, objects]."""
    peaks = weights.reshape(*inside.shape[:2], -1).argmax(axis=2)
    return np.take_along_axis(inside.reshape(*inside.shape[:2], -1), peaks[..., None], axis=2)[
        ..., 0
    ]


def saliency(
    run: Run, images: np.ndarray, before: np.ndarray, targets: np.ndarray, said: np.ndarray
) -> np.ndarray:
    """Saliency of raw images for the tokens that ``said`` [n, objects, time] selects.

    Returns [n, objects, rows, columns] of the model's grid.
    """
    batches = Batches({"inputs": {"image": images}}, len(images), seed=None, scaling=run.scaling)
    image, cfg = batches.batch(0)["inputs"]["image"], run.recipe.model
    gradients = [
        _gradient(run.module, cfg, run.params, image, before, targets, selected)
        for selected in said.swapaxes(0, 1)
    ]
    pixels = np.abs(np.stack(gradients, axis=1)).sum(axis=-1)
    rows, columns = cfg.grid
    height, width = (
        side - side % count for side, count in zip(pixels.shape[2:], cfg.grid, strict=True)
    )
    cells = pixels[..., :height, :width].reshape(
        *pixels.shape[:2], rows, height // rows, columns, width // columns
    )
    return cells.sum(axis=(3, 5))


@functools.partial(jax.jit, static_argnums=0)
def _gradient(
    module: Model, cfg: Any, params: Params, image: Any, before: Any, targets: Any, said: Any
) -> Any:
    """d log p(targets selected by ``said``) / d image."""

    def log_p(image: Any) -> Any:
        logits = module.apply(cfg, params, {"image": image, "target": before})
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return jnp.sum(jnp.where(said, chosen[..., 0], 0))

    return jax.grad(log_p)(image)


def attention(run: Run, images: np.ndarray, before: np.ndarray) -> np.ndarray | None:
    """Attention weights on raw images at each step, given the decoder inputs ``before`` [n, time].

    Returns [n, time, rows, columns] of the model's grid, or None for a model without attention.
    """
    batches = Batches({"inputs": {"image": images}}, len(images), seed=None, scaling=run.scaling)
    inputs = {"image": batches.batch(0)["inputs"]["image"], "target": jnp.asarray(before)}
    _, intermediates = _trace(run.module, run.recipe.model, run.params, inputs)
    return (
        np.asarray(intermediates["attention"], np.float32) if "attention" in intermediates else None
    )


@functools.partial(jax.jit, static_argnums=0)
def _trace(module: Model, cfg: Any, params: Params, inputs: Any) -> Any:
    return module.trace(cfg, params, inputs)


def overlays(run: Run, image: np.ndarray, written: Generated) -> str:
    """HTML of the raw image, and of the image lit by the attention weights of each caption token.

    As in figure 3 of LeCun, Bengio, Hinton (2015).
    """
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    grey = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    figures = [(picture(grey, "image"), written.text)]
    # Padded, so that captions of all lengths share one compiled program: later tokens do not affect
    # earlier weights.
    before = np.full(task_of(run).max_length + 1, END, np.int32)
    before[1 : len(written.tokens)] = written.tokens[:-1]
    weights = attention(run, image[None], before[None]) if len(written.tokens) else None
    if weights is not None:
        vocabulary = task_of(run).target.vocabulary
        for token, looked in zip(written.tokens, weights[0], strict=False):
            word = vocabulary[int(token)].lstrip("▁")
            figures.append((picture(lighten(pixels, looked), f"while it writes {word}"), word))
    return strip(figures)


def lighten(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Darkens an image where weights [rows, columns] are small.

    Bytes [height, width, channels] -> bytes [height, width, 3].
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    mask = Image.fromarray((255 * weights / max(float(weights.max()), 1e-9)).astype(np.uint8))
    light = (
        np.asarray(mask.resize((width, height), Image.Resampling.BILINEAR), np.float32)[..., None]
        / 255
    )
    colours = (
        np.broadcast_to(pixels[..., :3], (height, width, 3))
        if pixels.shape[-1] == 1
        else pixels[..., :3]
    )
    return np.round(colours * (0.25 + 0.75 * light) + 40 * light).clip(0, 255).astype(np.uint8)


def captioned(evaluation: Evaluation) -> str | None:
    """Captions with attention: of the chosen and the next examples, the best and the worst ones."""
    assert isinstance(evaluation.measured, Captioned)
    captions, references = evaluation.measured.captions, evaluation.measured.references
    images = evaluation.table["inputs"]["image"]
    wrong = {
        index for index in range(len(captions)) if captions[index].text not in references[index]
    }
    by_confidence = sorted(
        range(len(captions)),
        key=lambda index: -captions[index].score / max(len(captions[index].tokens), 1),
    )
    chosen = range(evaluation.example, min(evaluation.example + SHOWN, len(captions)))
    best, worst = (
        [index for index in by_confidence if index not in wrong][:SHOWN],
        [index for index in reversed(by_confidence) if index in wrong],
    )
    groups = {"From the chosen example on": chosen, "Correct, with the highest confidence": best}
    groups |= {"Wrong, with the lowest confidence": worst[:SHOWN]}

    def shown(row: int) -> dict[str, Any]:
        pictures = overlays(evaluation.run, images[row], captions[row])
        return {"example": row, "references": references[row], "overlays": pictures}

    body = render(
        "captions.html",
        correct=f"{len(captions) - len(wrong):,}",
        count=f"{len(captions):,}",
        groups={title: [*map(shown, rows)] for title, rows in groups.items()},
    )
    return titled("Captions", body)


def read_own(run: Run, file: Any) -> np.ndarray:
    """Reads an image file, resized to the training images.  Raises DataError naming the file."""
    height, width, channels = cast(tuple[int, int, int], run.data.input_shape)
    return read_image(file, (height, width, channels))


def print_captions(run: Run, options: verbs.Caption) -> int:
    """Prints a line for each image, and writes captions.html to the run folder."""
    failures, sections = Failures(), []
    images = list(readable(options.files, lambda file: read_own(run, file), failures))
    if not images:
        return 1
    pixels = np.stack([image for _, image in images])
    pixels = 255 - pixels if options.invert else pixels
    captions = caption(run, pixels, beam=options.beam, length_penalty=options.length_penalty)
    for (file, _), image, generated in zip(images, pixels, captions, strict=True):
        print(f"{file}  {generated.text}")
        if can_render():
            sections.append(titled(str(file), overlays(run, image, generated)))
    if not can_render():
        print(REPORT_NEEDS)
        return int(failures.any)
    file = run.folder.path / "captions.html"
    write_text(file, page(f"{run.recipe.name}, captions", sections))
    print(f"overlays {file}")
    return int(failures.any)


SECTIONS = (captioned,)
VERBS = {"caption": print_captions}
