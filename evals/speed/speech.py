"""Speech: the loss and a training step of CTC networks, and prefix beam search."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import zoo
from evals.speed.contenders import TORCH_THREADS, BackToBack, has_torch
from evals.speed.recurrent import RecurrentNetwork, flax_params, torch_params, torch_recurrent
from evals.speed.workloads import Workload
from zoo.base import Batch
from zoo.parts import labelling, prefix_search

BEAM = 25


def ctc(batch: int = 16, units: int = 128, length: int = 320, labels: int = 57) -> Workload:
    """The model of the recipe ``ctc-an4`` without dropout, on a batch of its middle bucket.

    length: of the longest recordings in frames; the shortest have three quarters of it.
    labels: places for them; a sixth to a half of the places are filled.
    """
    preset = zoo.ctc.PRESETS["an4"]
    cfg = zoo.ctc.Config(
        features=preset.features,
        vocabulary=preset.vocabulary,
        units=(units,) * len(preset.units),
        stack=preset.stack,
    )
    draw = np.random.default_rng(0)

    def spread(least: float, most: float) -> np.ndarray:
        return draw.permutation(np.linspace(least, most, batch).round().astype(np.int32))

    lengths, counts = spread(3 * length / 4, length), spread(labels / 6, labels / 2)
    frames = draw.standard_normal((batch, length, cfg.features), np.float32)
    arrays = {
        "inputs": {
            "frames": jnp.asarray(frames * (np.arange(length) < lengths[:, None])[..., None]),
            "lengths": jnp.asarray(lengths),
        },
        "targets": jnp.asarray(draw.integers(1, cfg.vocabulary, (batch, labels))),
        "mask": jnp.asarray(np.arange(labels) < counts[:, None]),
    }
    steps = tuple(zoo.ctc.steps_of(cfg, jnp.asarray(lengths)).tolist())
    network = RecurrentNetwork(cfg.units, cfg.vocabulary, bidirectional=True)
    return Workload(
        zoo.ctc,
        cfg,
        arrays,
        Listener(cfg.stack, network),
        lambda: torch_listener(cfg, network, steps),
        torch_params,
        lambda params: {"network": flax_params(params)},
        flax_loss=functools.partial(flax_loss, cfg),
        torch_loss=functools.partial(torch_loss, steps),
    )


SPEECH: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {
    "ctc": (ctc, {"torch": 1.0}),
}
"""See ``evals.speed.workloads.WORKLOADS``."""


class Listener(nn.Module):
    """The network of ``ctc`` in flax."""

    stack: int
    network: RecurrentNetwork

    @nn.compact
    def __call__(self, x: dict[str, Array]) -> Array:
        """Inputs as in the zoo, with zeros as padding -> logits [batch, steps, vocabulary]."""
        frames = x["frames"]
        steps = frames.reshape(len(frames), -1, self.stack * frames.shape[-1])
        return self.network(steps, -(-x["lengths"] // self.stack))


def torch_listener(cfg: zoo.ctc.Config, network: RecurrentNetwork, steps: tuple[int, ...]) -> Any:
    """The same in torch.  steps: of each recording."""
    import torch  # pyright: ignore[reportMissingImports]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch_recurrent(network, cfg.stack * cfg.features, steps)

        def forward(self, x: Any) -> Any:
            frames = x["frames"]
            return self.network(frames.reshape(len(frames), -1, cfg.stack * cfg.features))

    return Network()


def flax_loss(cfg: zoo.ctc.Config, logits: Array, batch: Batch) -> Array:
    """The loss of optax, per label."""
    steps = -(-batch["inputs"]["lengths"] // cfg.stack)
    padded = jnp.arange(logits.shape[1])[None] >= steps[:, None]
    mask = batch["mask"]
    losses = optax.ctc_loss(
        logits, padded.astype(logits.dtype), batch["targets"], 1 - mask.astype(logits.dtype)
    )
    return losses.sum() / mask.sum()


def torch_loss(steps: tuple[int, ...], batch: Batch) -> Callable[[Any], Any]:
    """The same of torch.  steps: of each recording."""
    import torch  # pyright: ignore[reportMissingImports]

    targets, mask = np.asarray(batch["targets"]), np.asarray(batch["mask"])
    counts = tuple(mask.sum(axis=1).tolist())
    labels = torch.tensor(targets).long()

    def loss(logits: Any) -> Any:
        log_p = torch.log_softmax(logits.movedim(0, 1), dim=-1)
        total = torch.nn.functional.ctc_loss(log_p, labels, steps, counts, reduction="sum")
        return total / sum(counts)

    return loss


def aligning(
    batch: int = 32, length: int = 300, labels: int = 40, vocabulary: int = 30
) -> dict[str, Any]:
    """Contenders for the CTC loss and its gradient by the logits: {peer: BackToBack}.

    All sequences have ``length`` steps and ``labels`` labels.  The outputs of a contender are the
    sum of the losses, and the gradient; torch's logits are [length, batch, vocabulary], which is
    the layout that it expects.
    """
    draw = np.random.default_rng(0)
    logits = draw.standard_normal((batch, length, vocabulary), np.float32)
    targets = draw.integers(1, vocabulary, (batch, labels)).astype(np.int32)
    # All are arguments: constants would let the compiler drop the padding of one contender.
    lengths = jnp.full(batch, length), jnp.full(batch, labels)
    paddings = jnp.zeros((batch, length)), jnp.zeros((batch, labels))

    def zoo_loss(logits: Array, targets: Array, steps: Array, counts: Array) -> Array:
        return labelling.loss(logits, steps, targets, counts).sum()

    def optax_loss(logits: Array, targets: Array, steps: Array, places: Array) -> Array:
        return optax.ctc_loss(logits, steps, targets, places).sum()

    arrays = jnp.asarray(logits), jnp.asarray(targets)
    timed: dict[str, Any] = {
        "zoo": _Aligned(zoo_loss, *arrays, *lengths),
        "optax": _Aligned(optax_loss, *arrays, *paddings),
    }
    return timed | ({"torch": _TorchAligned(logits, targets)} if has_torch() else {})


ALIGNING_AT_MOST = {"torch": 0.5, "optax": 1.05}
"""{peer: promised ratio}: as fast as optax, but for noise."""


class _Aligned(BackToBack):
    """A loss and its gradient in JAX."""

    def __init__(self, loss: Callable[..., Array], *arguments: Array) -> None:
        """loss: a function of the arguments, of which the first are the logits."""
        self.jitted, self.arguments = jax.jit(jax.value_and_grad(loss)), arguments

    def step(self) -> None:
        """Computes both and waits for them, because otherwise the next would run concurrently."""
        self.outputs = jax.block_until_ready(self.jitted(*self.arguments))


class _TorchAligned(BackToBack):
    """The same in torch."""

    def __init__(self, logits: np.ndarray, targets: np.ndarray) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(TORCH_THREADS)
        self.torch, self.loss = torch, torch.nn.CTCLoss(reduction="sum")
        self.logits = torch.tensor(np.moveaxis(logits, 1, 0).copy(), requires_grad=True)
        self.targets = torch.tensor(targets).long()
        self.lengths = tuple((size,) * len(targets) for size in (logits.shape[1], targets.shape[1]))

    def step(self) -> None:
        """Computes both."""
        self.logits.grad = None
        log_p = self.torch.log_softmax(self.logits, dim=-1)
        loss = self.loss(log_p, self.targets, *self.lengths)
        loss.backward()
        self.outputs = loss.detach(), self.logits.grad


class Spoken(NamedTuple):
    """Input of a prefix search: log p [batch, time, labels] of float32, label 0 the blank."""

    log_p: np.ndarray
    beam: int


def utterances(batch: int = 32, length: int = 75, labels: int = 30, beam: int = BEAM) -> Spoken:
    """Random outputs for three seconds, 25 a second; the blank is the most probable label."""
    logits = np.random.default_rng(0).normal(0, 3, (batch, length, labels)).astype(np.float32)
    logits[:, :, 0] += 2
    return Spoken(np.array(jax.nn.log_softmax(logits)), beam)


class PrefixSearched(BackToBack):
    """``zoo.parts.prefix_search``, all utterances at once."""

    def __init__(self, task: Spoken) -> None:
        """task: the utterances, and the width of the beam."""
        self.batch, length, _ = task.log_p.shape
        self.log_p, self.beam = jnp.asarray(task.log_p), task.beam
        self.lengths = jnp.full(self.batch, length)

    def step(self) -> None:
        """Searches, and waits for the result."""
        self.outputs = jax.block_until_ready(
            prefix_search.search(
                self.log_p, self.lengths, beam=self.beam, longest=self.log_p.shape[1]
            )
        )

    def best(self) -> list[tuple[tuple[int, ...], float]]:
        """The best labels of each utterance, and their log p."""
        labels, lengths, scores = (np.asarray(leaf)[:, 0] for leaf in self.outputs)
        return [
            (tuple(row[:length].tolist()), float(score))
            for row, length, score in zip(labels, lengths, scores, strict=True)
        ]


class SearchedInDictionaries(BackToBack):
    """The same in Python, one utterance after the other: {prefix: probabilities}.

    Probabilities are scaled in each frame, because logarithms would take longer.
    """

    def __init__(self, task: Spoken) -> None:
        """task: the utterances, and the width of the beam."""
        self.batch, self.beam, self.p = len(task.log_p), task.beam, np.exp(np.float64(task.log_p))

    def step(self) -> None:
        """Searches; the outputs are (labels, log p) of each beam."""
        self.outputs = [self.search(p) for p in self.p]

    def best(self) -> list[tuple[tuple[int, ...], float]]:
        """The best labels of each utterance, and their log p."""
        return [found[0] for found in self.outputs]

    def search(self, p: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
        """The beam of an utterance, p [time, labels], best first."""
        # The probabilities of alignments that end in a blank, and in the last label.
        beam, scale = {(): (1.0, 0.0)}, 0.0
        for frame in p.tolist():
            after: dict[tuple[int, ...], tuple[float, float]] = {}
            for prefix, (blank, label) in beam.items():
                total, last = blank + label, prefix[-1] if prefix else 0
                before = after.get(prefix, (0.0, 0.0))
                stay = label * frame[last] if prefix else 0.0
                after[prefix] = before[0] + total * frame[0], before[1] + stay
                for new in range(1, len(frame)):
                    extended = (*prefix, new)
                    before = after.get(extended, (0.0, 0.0))
                    source = blank if new == last else total
                    after[extended] = before[0], before[1] + source * frame[new]
            best = sorted(after.items(), key=lambda item: -sum(item[1]))[: self.beam]
            most = sum(best[0][1])
            scale += math.log(most)
            beam = {prefix: (blank / most, label / most) for prefix, (blank, label) in best}
        return [(prefix, math.log(sum(sums)) + scale) for prefix, sums in beam.items() if sum(sums)]


class PrefixSearchedInNumpy(SearchedInDictionaries):
    """The same, with the scores of all candidates in one array, and only the beam as tuples."""

    def search(self, p: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
        """The beam of an utterance, p [time, labels], best first."""
        labels, scale = p.shape[1], 0.0
        prefixes: list[tuple[int, ...]] = [()]
        blank, label, last = np.ones(1), np.zeros(1), np.zeros(1, int)
        for frame in p:
            total, rows = blank + label, np.arange(len(prefixes))
            # Column 0 holds the prefixes as they are.
            candidates = total[:, None] * frame
            candidates[rows, last] = blank * frame[last]
            stay_blank, stay_label = total * frame[0], label * frame[last]
            stay_label[last == 0] = 0
            places = {prefix: place for place, prefix in enumerate(prefixes)}
            for place, prefix in enumerate(prefixes):
                parent = places.get(prefix[:-1]) if prefix else None
                if parent is not None:
                    stay_label[place] += candidates[parent, prefix[-1]]
                    candidates[parent, prefix[-1]] = 0
            candidates[:, 0] = stay_blank + stay_label
            flat = candidates.reshape(-1)
            order = np.argsort(-flat)[: self.beam] if len(flat) <= self.beam else self._best(flat)
            parents, new = np.divmod(order, labels)
            most = flat[order[0]]
            scale += math.log(most)
            stays = new == 0
            blank = np.where(stays, stay_blank[parents], 0) / most
            label = np.where(stays, stay_label[parents], flat[order]) / most
            last = np.where(stays, last[parents], new)
            prefixes = [
                (*prefixes[parent], one) if one else prefixes[parent]
                for parent, one in zip(parents.tolist(), new.tolist(), strict=True)
            ]
        scores = blank + label
        return [
            (prefix, math.log(score) + scale)
            for prefix, score in zip(prefixes, scores.tolist(), strict=True)
            if score
        ]

    def _best(self, scores: np.ndarray) -> np.ndarray:
        """Places of the highest scores, best first."""
        order = np.argpartition(scores, -self.beam)[-self.beam :]
        return order[np.argsort(-scores[order])]


PREFIX_SEARCHES: dict[str, type[Any]] = {
    "zoo": PrefixSearched,
    "numpy": PrefixSearchedInNumpy,
    "dictionaries": SearchedInDictionaries,
}
"""{contender: class}."""
