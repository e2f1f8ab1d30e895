"""Language modelling: perplexity compared with n-gram models, per-token loss, and samples.

A *text* is a data set of ``train.data.text``: windows of tokens, which are characters or words.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from evals import ngrams, verbs
from evals.base import Evaluation, Measured, Subject
from evals.metrics import is_whole
from evals.report.page import render, titled
from evals.report.words import analogies, neighbours, word_map
from evals.run import Run
from train import tasks
from train.data.text import BEGIN, UNKNOWN, begun, decode, encode
from train.engine.step import root_key
from zoo.base import Params, Recurrent, restart
from zoo.parts.language import generate

ORDERS = {"characters": (5, 7), "words": (2, 3, 5)}
"""Orders of the n-gram baselines; the model is also interpolated with the last one."""
MOST = 20_000_000
"""Maximum number of training tokens for n-grams: more would need gigabytes of memory."""
TEMPERATURES = (0.5, 0.8, 1.0)
WRITTEN, PROMPT, PASSAGE = (
    {"characters": c, "words": w} for c, w in ((500, 100), (40, 8), (1500, 300))
)
"""Number of tokens in the report: of each sample, of its prompt, and of the passage."""
DARKEST = 0.55
"""Opacity behind tokens at chance level; text stays readable in light and dark mode."""


TASK = tasks.Language


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Read(Measured):
    """log_probabilities: log p of each token of the split, in order, float32 [tokens]."""

    log_probabilities: np.ndarray


def language_of(run: Run) -> tasks.Language:
    """The run's task.  Raises DataError if it is not language modelling."""
    if not isinstance(run.task, TASK):
        verbs.require(run, "sample", {})
    assert isinstance(run.task, TASK)
    return run.task


def measure(subject: Subject) -> Read:
    """The metrics of the loss, and log p of each token.

    Further metrics are "perplexity", "tokens", "unknown %" (of the targets) and, on the run's own
    data, those of ``baselines``.  On splits other than validation, also the validation loss, which
    is used for model selection, unless the model was trained on that split.
    """
    run, split, splits = subject.run, subject.split, subject.dataset.splits
    table = subject.table
    log_probabilities = token_log_probabilities(run, table)
    with np.errstate(over="ignore"):  # infinite if the model diverged
        perplexity = float(np.exp(subject.means["loss"]))
    unknown = table["targets"][table["mask"]] == UNKNOWN
    named = {
        "perplexity": perplexity,
        "tokens": float(len(log_probabilities)),
        "unknown %": 100 * float(unknown.mean()),
    }
    held_out = None
    unseen = split != "validation" and "validation" not in run.recipe.train_on
    if subject.own and unseen and not np.isnan(log_probabilities).any():
        held_out = token_log_probabilities(run, splits["validation"]).astype(np.float64)
    if subject.own:
        probabilities = np.exp(log_probabilities.astype(np.float64))
        mixed = None if held_out is None else np.exp(held_out)
        named |= baselines(run, split, splits, probabilities, mixed)
    metrics = subject.losses | subject.named(named)
    if held_out is not None:
        metrics["validation loss nats"] = float(-held_out.mean())
    return Read(metrics=metrics, tokens=len(log_probabilities), log_probabilities=log_probabilities)


def baselines(
    run: Run,
    split: str,
    splits: Mapping[str, dict[str, Any]],
    neural: np.ndarray,
    held_out: np.ndarray | None,
) -> dict[str, float]:
    """Metrics on a split of modified Kneser-Ney n-gram models of the run's training data.

    "perplexity of 5-grams"; for characters "loss of 5-grams nats".
    "perplexity with 5-grams": of w p(model) + (1 - w) p(5-grams), where w, "weight with 5-grams",
        is the best weight on the validation split.

    neural: the model's p of the split's tokens.
    held_out: the model's p of the validation split's tokens; None: no interpolation.
    Returns {} for a training split, and for more than MOST training tokens.
    """
    task = language_of(run)
    trained, vocabulary, tokens = run.recipe.train_on.split("+"), len(task.vocabulary), task.tokens
    training = [document for name in trained for document in documents(splits[name])]
    if split in trained or sum(map(len, training)) > MOST:
        return {}

    def name(relation: str, order: int, p: np.ndarray) -> dict[str, float]:
        perplexity = ngrams.perplexity(p)
        if tokens == "words":
            return {f"perplexity {relation} {order}-grams": perplexity}
        return {f"loss {relation} {order}-grams nats": math.log(perplexity)}

    named = {}
    for order in ORDERS[tokens]:
        model = ngrams.fit(training, vocabulary, order)
        p, other = (
            np.concatenate(
                [
                    ngrams.probabilities(model, document)
                    for document in documents(splits[split_name])
                ]
            )
            for split_name in (split, "validation")
        )
        named |= name("of", order, p)
        if held_out is not None and order == ORDERS[tokens][-1]:
            weight = ngrams.interpolate(held_out, other)
            named |= name("with", order, weight * neural + (1 - weight) * p) | {
                f"weight with {order}-grams": weight
            }
    return named


def documents(table: Mapping[str, Any]) -> list[np.ndarray]:
    """The documents of a split of text, in order, each int32 [tokens]."""
    return np.split(table["targets"][table["mask"]], tokens_before(table)[table["reset"]][1:])


def tokens_before(table: Mapping[str, Any]) -> np.ndarray:
    """Number of tokens before each window of a split of text [windows]."""
    lengths = table["mask"].sum(axis=1)
    return np.cumsum(lengths) - lengths


def token_log_probabilities(run: Run, table: Mapping[str, Any]) -> np.ndarray:
    """log p of each token of a split given the preceding tokens, in order: float32 [tokens].

    Their negative mean is the loss.  As in ``evaluation_batches``, the text is read in several
    segments in parallel, and each segment starts without the preceding text.
    """
    module, cfg = run.module, run.recipe.model

    def start(rows: int) -> Any:
        return module.init_carry(cfg, run.params, rows, key=root_key(0))

    def step(carry: Any, batch: Any) -> tuple[Any, Array]:
        return _read(module, cfg, run.params, carry, batch)

    return run.scan(step, start, table)[table["mask"]]


@functools.partial(jax.jit, static_argnums=0)
def _read(module: Recurrent, cfg: Any, params: Params, carry: Any, batch: Any) -> tuple[Any, Array]:
    """The carry after a batch, and log p of its targets, float32 [batch, time]."""
    start = restart(module.initial_carry(cfg, params, batch["inputs"].shape[0]), carry, batch)
    carry, logits = module.unroll(cfg, params, start, batch["inputs"], mask=batch["mask"])
    return carry, -optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])


def read_prompt(run: Run, prompt: str) -> tuple[np.ndarray, list[str]]:
    """The tokens of a prompt, int32 [tokens], and the words that are not in the vocabulary.

    The first token is the one that begins every text.
    Raises DataError naming the run's folder unless its model is a language model.
    """
    vocabulary = language_of(run).vocabulary
    prompt = prompt.removeprefix(vocabulary[BEGIN])
    parts = begun(prompt, vocabulary)
    unknown = [part for part in parts if part not in vocabulary]
    return np.concatenate([[BEGIN], encode(parts, vocabulary)]).astype(np.int32), list(
        dict.fromkeys(unknown)
    )


def write(
    run: Run,
    prompt: np.ndarray,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Generates tokens [length], never <unk>, after a prompt [tokens].

    See ``zoo.parts.language.generate``.  Raises ValueError naming what is out of range.
    """
    most = len(language_of(run).vocabulary)
    checks = {
        f"prompt: shape {prompt.shape}, allowed: [tokens], at least one": prompt.ndim == 1
        and prompt.size > 0,
        f"prompt: tokens outside of 0 to {most - 1}": ((prompt >= 0) & (prompt < most)).all(),
        f"tokens={length}, allowed: a positive number": is_whole(length) and length >= 1,
        f"temperature={temperature}, allowed: a finite number, 0 or more": 0
        <= temperature
        < math.inf,
        f"top_k={top_k}, allowed: 1 to {most}": top_k is None
        or (is_whole(top_k) and 1 <= top_k <= most),
        f"seed={seed}, allowed: 0 to {2**32 - 1}": is_whole(seed) and 0 <= seed < 2**32,
    }
    for message, holds in checks.items():
        if not holds:
            raise ValueError(message)
    assert isinstance(run.module, Recurrent)
    keys = root_key(np.uint32(seed))[None]
    options = {"temperature": temperature, "top_k": top_k, "suppressed": (UNKNOWN,)}
    return np.asarray(
        generate(
            run.module,
            run.recipe.model,
            run.params,
            jax.numpy.asarray(prompt[None]),
            length,
            keys,
            **options,
        )[0]
    )


def samples(evaluation: Evaluation) -> str | None:
    """Continuations of the beginning of the chosen example, at several temperatures."""
    run, table = evaluation.run, evaluation.table
    vocabulary, tokens = language_of(run).vocabulary, language_of(run).tokens
    begun = table["targets"][evaluation.example][table["mask"][evaluation.example]][
        : PROMPT[tokens]
    ]
    prompt = np.concatenate([[BEGIN], begun]).astype(np.int32)
    texts = {}
    for temperature in TEMPERATURES:
        written = write(run, prompt, WRITTEN[tokens], temperature=temperature)
        texts[f"{temperature:g}"] = decode(written.tolist(), vocabulary)
    intro = (
        f"The model continues the first {len(begun)} {tokens} (bold) of example "
        f"{evaluation.example} of the {evaluation.split} split.  Logits are divided by the "
        "temperature: the lower it is, the more often the most probable token is drawn."
    )
    values = {"intro": intro, "prompt": decode(begun, vocabulary), "texts": texts}
    return titled("Samples", render("samples.html", **values))


def passage(evaluation: Evaluation) -> str | None:
    """A passage that starts at the chosen example, with each token shaded by its -log p."""
    assert isinstance(evaluation.measured, Read)
    run, table, log_probabilities = (
        evaluation.run,
        evaluation.table,
        evaluation.measured.log_probabilities,
    )
    vocabulary, tokens = language_of(run).vocabulary, language_of(run).tokens
    first = int(tokens_before(table)[evaluation.example])
    stretch = slice(first, first + PASSAGE[tokens])
    targets = table["targets"][table["mask"]][stretch]
    begins = set((tokens_before(table)[table["reset"]] - first).tolist())
    chance = math.log(max(len(vocabulary), 2))
    shaded = [
        _shaded(decode([token], vocabulary), log_p, chance)
        for token, log_p in zip(targets.tolist(), log_probabilities[stretch].tolist(), strict=True)
    ]
    steps = [p for p in (1, 0.1, 0.01, 0.001) if -math.log(p) < chance]
    key = [_shaded(f" {p:.2g} ", math.log(p), chance) for p in (*steps, 1 / len(vocabulary))]
    mean = -log_probabilities[stretch].mean(dtype=np.float64)
    intro = (
        f"{len(targets)} {tokens} of the {evaluation.split} split, starting at example "
        f"{evaluation.example}.  Each is shaded by -log p, where p is its probability under the "
        f"model given the preceding {tokens}.  The darkest shade is {chance:.1f} nats, the cost of "
        f"a uniform guess among all {len(vocabulary):,} tokens.  Here the mean is {mean:.2f} "
        "nats.  A line end is also a token."
    )
    values = {"intro": intro, "key": key, "tokens": shaded, "begins": begins - {0}}
    return titled("Per-token loss", render("passage.html", **values))


def _shaded(text: str, log_p: float, chance: float) -> dict[str, str]:
    """A token with line ends made visible, the space after it, its p, and the shade behind it."""
    shade = DARKEST * min(-log_p / chance, 1) if log_p < 0 else 0.0
    shown, space = (
        (text[:-1], " ") if len(text) > 1 and text[-1] == " " else (text.replace("\n", "↵\n"), "")
    )
    p = f"{math.exp(log_p):.2g}"
    return {"shown": shown, "space": space, "p": p, "shade": f"{shade:.2f}"}


def print_sample(run: Run, options: verbs.Sample) -> int:
    """Prints the prompt as the model reads it and its continuation; reports unknown words."""
    prompt, unknown = read_prompt(run, options.prompt)
    written = write(
        run,
        prompt,
        options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    if unknown:
        words = " ".join(map(repr, unknown))
        print(f"not in the vocabulary, read as <unk>: {words}", file=sys.stderr)
    print(decode([*prompt[1:], *written], language_of(run).vocabulary))
    return 0


SECTIONS = (samples, passage, neighbours, analogies, word_map)
VERBS = {"sample": print_sample}
