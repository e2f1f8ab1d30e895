"""Captions: what a model says of images, how near that is to what people wrote, and whether it looks at what it names.

BLEU-1 to BLEU-4 are sacrebleu's, from 0 to 100; CIDEr-D and ROUGE-L those of ``evals.caption_metrics``, of words.

*Pointing*: while the model says what an object is called, is the centre of the place that it looks at most within that object's
box?  A name is its noun and what belongs to it: "an" says as much of an eight as "eight" does, and so a model looks before it
writes either.  Counted are objects of images whose caption is right, word for word, so that there is no doubt which object a name
means.  Chance is the part of all places whose centre is in the box.

A model without attention looks nowhere; its *saliency* takes the place of weights: the sum over a place's pixels of the absolute
gradient of log p(name) (Simonyan, Vedaldi, Zisserman 2013, section 3).
"""

import collections
import dataclasses
import functools
import html
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
from evals.report.page import REPORT_NEEDS, can_render, page, picture, titled
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
"""Images that are captioned at a time."""
SHOWN = 3
"""Images in the report, of the best and of the worst captions."""
ZOOM = 160
"""Pixels of a picture's side in the report, about."""


class Pointing(NamedTuple):
    """Shares of objects in per cent: hit by the place that is looked at most; while the noun is written; by chance.

    objects: how many there are.  noun: NaN for saliency.
    """

    hit: float
    noun: float
    chance: float
    objects: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Captioned(Measured):
    """captions: of the images.  references: of each image, its spaces single."""

    captions: list[Generated]
    references: list[list[str]]


def task_of(run: Run) -> tasks.Captioning:
    """The run's task.  Raises DataError for another one."""
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
    """The best captions that a beam search finds of raw images [n, height, width, channels].

    They have at most as many tokens as ``data.max_length`` allowed in training, and an end.
    Raises DataError naming the run's folder unless its model writes captions, ValueError naming what is out of range.
    """
    task = task_of(run)
    require_search(len(task.target.vocabulary), beam, length_penalty)

    def function(module: Any, cfg: Any, params: Params, batch: Any) -> Any:
        return search(
            module, cfg, params, batch["inputs"], task.max_length + 1, beam, length_penalty
        )

    written = run.map(function, {"inputs": {"image": images}}, rows=min(ROWS, len(images)))
    found = []
    for tokens, count, score in zip(*(leaf[:, 0] for leaf in written), strict=True):
        own = tokens[:count]
        found.append(Generated(task.target.decode(own), own, float(score)))
    return found


def measure(subject: Subject) -> Captioned:
    """The metrics of the loss, and those of the captions:

    "exact %", of captions that someone wrote; "BLEU-1" to "BLEU-4", "CIDEr-D", "ROUGE-L"; "perplexity" of a token; where objects
    are known "objects %", whose names are said; "pointing %" with attention, "saliency pointing %" without, and "pointing by
    chance %".
    """
    run, table = subject.run, subject.table
    sentences = table.extras["sentences"]
    references = table.extras.get("references", ())
    found = caption(run, table["inputs"]["image"])
    said = _said(sentences, references)
    right = np.array([each.text in own for each, own in zip(found, said, strict=True)])
    written = [each.text for each in found]
    with np.errstate(over="ignore"):  # of a model that diverged
        perplexity = float(np.exp(subject.means["loss"]))
    named = {"exact %": 100 * float(right.mean()), "perplexity": perplexity}
    if table.extras.get("phrases") is not None:
        named["objects %"] = 100 * named_objects(table, [each.tokens for each in found])
    pointed = pointing(run, table, right)
    if pointed is not None and np.isnan(pointed.noun):
        named |= {"saliency pointing %": pointed.hit, "pointing by chance %": pointed.chance}
    elif pointed is not None:
        named |= {"pointing %": pointed.hit, "pointing at nouns %": pointed.noun}
        named |= {"pointing by chance %": pointed.chance}
    words = (
        [" ".join(pieces("words", text)) for text in written],
        [[" ".join(pieces("words", text)) for text in own] for own in said],
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
            named[f"BLEU-{order}"] = metric.corpus_score(written, [*zip_longest(*said)]).score
            how = f"beam {BEAM}, length penalty {LENGTH_PENALTY:g}"
            note = f"BLEU: sacrebleu {metric.get_signature()}, {how}"
    once = len(set(references)) == len(references)  # no image is there twice
    return Captioned(
        metrics=subject.losses | subject.named(named),
        note=note,
        shares=subject.named({"exact %": len(found)}) if once else {},
        captions=found,
        references=said,
    )


def _said(
    sentences: Sequence[tuple[str, str]], references: Sequence[Sequence[str]]
) -> list[list[str]]:
    """What people said of each image, its spaces single."""
    return [
        [" ".join(text.split()) for text in each]
        for each in references or [[target] for _, target in sentences]
    ]


def named_objects(table: Table, written: Sequence[np.ndarray]) -> float:
    """Share of objects whose names, article and all, are among the tokens written; of two that are called alike both are.

    What is written is read as the longest names that any object of the table has: "a duck made of rubber" names no "duck".
    Raises ValueError where there is no object, or not something written for each row.
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
    said = (collections.Counter(_named(tokens.tolist(), known)) for tokens in written)
    return sum((own & found).total() for own, found in zip(names, said, strict=True)) / sum(
        own.total() for own in names
    )


def _named(tokens: list[int], known: set[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The longest known names in a text, from its beginning on."""
    lengths, at = sorted({len(name) for name in known}, reverse=True), 0
    while at < len(tokens):
        name = next(
            (name for length in lengths if (name := tuple(tokens[at : at + length])) in known), None
        )
        if name is not None:
            yield name
        at += len(name or (0,))


def pointing(run: Run, table: Table, right: np.ndarray) -> Pointing | None:
    """Of images whose captions are ``right`` [n]; None without boxes or any such image."""
    rows = np.flatnonzero(right)
    names = ("boxes", "phrases", "words")
    if table.extras.get("boxes") is None or not len(rows):
        return None
    columns = {**table, **{name: table.extras[name] for name in names}}
    found = []
    for first in range(0, len(rows), ROWS):
        chosen = jax.tree.map(lambda leaf: leaf[rows[first : first + ROWS]], columns)  # noqa: B023 (used at once)
        inputs, phrases, boxes = chosen["inputs"], chosen["phrases"], chosen["boxes"]
        weights = attention(run, inputs["image"], inputs["target"])
        time = np.arange(inputs["target"].shape[1])
        said = (time >= phrases[..., :1]) & (time < phrases[..., 1:])  # [n, objects, time]
        if weights is None:
            looked = saliency(run, inputs["image"], inputs["target"], chosen["targets"], said)
            at_noun = np.full(boxes.shape[:2], np.nan)
        else:
            looked = np.where(said[..., None, None], weights[:, None], 0).max(axis=2)
            at_noun = _hits(
                np.take_along_axis(weights, chosen["words"][:, :, None, None], axis=1),
                _inside(run, boxes, weights),
            )
        inside = _inside(run, boxes, looked)
        there = phrases[..., 1] > 0
        found.append(np.stack([_hits(looked, inside), at_noun, inside.mean(axis=(2, 3))])[:, there])
    shares = 100 * np.concatenate(found, axis=1).mean(axis=1)
    hit, noun, chance = map(float, shares)
    return Pointing(hit, noun, chance, sum(each.shape[1] for each in found))


def _inside(run: Run, boxes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Which places of the grid of weights [..., rows, columns] have their centres in boxes [n, objects, 4]."""
    within = []
    for axis, (count, size) in enumerate(
        zip(weights.shape[-2:], cast(Any, run.data.input_shape), strict=False)
    ):
        centres = (np.arange(count) + 0.5) * size / count
        within.append((centres >= boxes[..., axis, None]) & (centres < boxes[..., axis + 2, None]))
    return within[0][..., :, None] & within[1][..., None, :]


def _hits(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Whether the places of most weight are inside; both [n, objects, rows, columns] -> [n, objects]."""
    peaks = weights.reshape(*inside.shape[:2], -1).argmax(axis=2)
    return np.take_along_axis(inside.reshape(*inside.shape[:2], -1), peaks[..., None], axis=2)[
        ..., 0
    ]


def saliency(
    run: Run, images: np.ndarray, before: np.ndarray, targets: np.ndarray, said: np.ndarray
) -> np.ndarray:
    """Of raw images, for tokens chosen by ``said`` [n, objects, time]: [n, objects, height, width] of the model's grid."""
    batches = Batches({"inputs": {"image": images}}, len(images), seed=None, scaling=run.scaling)
    image, cfg = batches.batch(0)["inputs"]["image"], run.recipe.model
    gradients = [
        _gradient(run.module, cfg, run.params, image, before, targets, each)
        for each in said.swapaxes(0, 1)
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
    """d log p(said targets) / d image."""

    def log_p(image: Any) -> Any:
        logits = module.apply(cfg, params, {"image": image, "target": before})
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return jnp.sum(jnp.where(said, chosen[..., 0], 0))

    return jax.grad(log_p)(image)


def attention(run: Run, images: np.ndarray, before: np.ndarray) -> np.ndarray | None:
    """Where the model looks in raw images while it writes what follows tokens [n, time]: [n, time, height, width] of the grid."""
    batches = Batches({"inputs": {"image": images}}, len(images), seed=None, scaling=run.scaling)
    inputs = {"image": batches.batch(0)["inputs"]["image"], "target": jnp.asarray(before)}
    _, seen = _trace(run.module, run.recipe.model, run.params, inputs)
    return np.asarray(seen["attention"], np.float32) if "attention" in seen else None


@functools.partial(jax.jit, static_argnums=0)
def _trace(module: Model, cfg: Any, params: Params, inputs: Any) -> Any:
    return module.trace(cfg, params, inputs)


def overlays(run: Run, image: np.ndarray, written: Generated) -> str:
    """The raw image, and for each word that the model wrote of it the image lit where it looked; figure 3 of the review."""
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    grey = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    figures = [
        f"<figure>{picture(grey, 'image')}<figcaption>{html.escape(written.text)}</figcaption></figure>"
    ]
    # Filled up, so that captions of all lengths are one program: what comes later changes nothing.
    before = np.full(task_of(run).max_length + 1, END, np.int32)
    before[1 : len(written.tokens)] = written.tokens[:-1]
    weights = attention(run, image[None], before[None]) if len(written.tokens) else None
    if weights is not None:
        vocabulary = task_of(run).target.vocabulary
        for token, looked in zip(written.tokens, weights[0], strict=False):
            word = vocabulary[int(token)].lstrip("▁")
            title = f"while it writes {word}"
            lit = lighten(pixels, looked)
            figures.append(
                f"<figure>{picture(lit, title)}<figcaption>{html.escape(word)}</figcaption></figure>"
            )
    return f'<div class="strips" style="--width: {ZOOM}px">{"".join(figures)}</div>'


def lighten(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """An image, bytes [height, width, channels], dark but where the weights [rows, columns] are: bytes [height, width, 3]."""
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
    """The chosen image and the ones after it, and images with the worst captions: what was said, and where the model looked."""
    assert isinstance(evaluation.measured, Captioned)
    found, said = evaluation.measured.captions, evaluation.measured.references
    images = evaluation.table["inputs"]["image"]
    wrong = {index for index in range(len(found)) if found[index].text not in said[index]}
    sure = sorted(
        range(len(found)), key=lambda index: -found[index].score / max(len(found[index].tokens), 1)
    )
    chosen = range(evaluation.example, min(evaluation.example + SHOWN, len(found)))
    best, worst = (
        [index for index in sure if index not in wrong][:SHOWN],
        [index for index in reversed(sure) if index in wrong],
    )
    groups = {"From the chosen example on": chosen, "Right, and the model was most sure": best}
    groups |= {"Wrong, and the model was least sure": worst[:SHOWN]}
    parts = []
    for title, rows in groups.items():
        parts.append(f"<h3>{title}</h3>" if rows else "")
        for row in rows:
            note = f'<p class="note">example {row}; people: {html.escape("; ".join(said[row]))}</p>'
            parts.append(note + overlays(evaluation.run, images[row], found[row]))
    intro = f"{len(found) - len(wrong):,} of {len(found):,} captions are what people wrote.  Each picture is lit where the model "
    intro += "looked while it wrote the word below, as in figure 3 of LeCun, Bengio, Hinton (2015).  <code>--example N</code> chooses "
    intro += "others, <code>zoo-evals caption</code> captions your own."
    return titled("Captions", f"<p>{intro}</p>{''.join(parts)}")


def read_own(run: Run, file: Any) -> np.ndarray:
    """An image file, resized to those of the training data, of a run of captioning.  Raises DataError naming it."""
    height, width, channels = cast(tuple[int, int, int], run.data.input_shape)
    return read_image(file, (height, width, channels))


def print_captions(run: Run, options: verbs.Caption) -> int:
    """Prints a line for each image, and writes captions.html into the run folder."""
    failures, sections = Failures(), []
    images = list(readable(options.files, lambda file: read_own(run, file), failures))
    if not images:
        return 1
    pixels = np.stack([image for _, image in images])
    pixels = 255 - pixels if options.invert else pixels
    found = caption(run, pixels, beam=options.beam, length_penalty=options.length_penalty)
    for (file, _), image, generated in zip(images, pixels, found, strict=True):
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
