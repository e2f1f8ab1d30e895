"""Sentence generation by beam search, and BLEU, for translation and captioning.

BLEU (Papineni et al. 2002) is computed by sacrebleu on untokenised sentences, from 0 to 100; its
signature is stored with the numbers.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evals.metrics import is_whole
from train.tokens import END, UNKNOWN
from zoo.base import Conditional
from zoo.parts.decode import Hypotheses, beam_search, greedy

BEAM, LENGTH_PENALTY = 5, 1.0
NEEDS_BLEU = "no BLEU: it needs sacrebleu: pip install 'purezoo[evals]'"


class Generated(NamedTuple):
    """A sentence that a model generated.

    tokens: int [time], including the end token if there is one.
    score: log p of the tokens, in nats.
    """

    text: str
    tokens: np.ndarray
    score: float


def has_bleu() -> bool:
    """Whether sacrebleu is installed.  It is optional: only BLEU needs it."""
    return importlib.util.find_spec("sacrebleu") is not None


def require_search(vocabulary: int, beam: int, length_penalty: float) -> None:
    """Raises ValueError naming what is out of range."""
    if not (is_whole(beam) and 1 <= beam <= vocabulary):
        raise ValueError(f"beam={beam!r}, allowed: 1 to {vocabulary}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty={length_penalty}, allowed: a finite number, 0 or more")


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def search(
    module: Conditional,
    cfg: Any,
    params: Any,
    inputs: Any,
    length: int,
    beam: int,
    length_penalty: Any,
) -> Hypotheses:
    """Beam search that never returns <unk>; greedy search if ``beam`` is 1.

    inputs: those of ``zoo.base.Conditional.encode``.
    """
    memory, carry = module.encode(cfg, params, inputs)

    def step(carry: Any, tokens: Any) -> Any:
        return module.decode_step(cfg, params, carry, tokens, memory)

    first = jnp.full(len(jax.tree.leaves(inputs)[0]), END, jnp.int32)
    options = {"end": END, "suppressed": (UNKNOWN,)}
    if beam == 1:  # not beam search: with width 1 it would continue after the most probable end
        return jax.tree.map(
            lambda leaf: leaf[:, None], greedy(step, carry, first, length, **options)
        )
    return beam_search(
        step, carry, first, length, width=beam, length_penalty=length_penalty, **options
    )


def bleu(translations: Sequence[str], targets: Sequence[str]) -> tuple[float, str]:
    """BLEU of a corpus, 0 to 100, and sacrebleu's signature.

    Raises ValueError without translations, or unless each has a target.
    """
    import sacrebleu

    if not translations or len(translations) != len(targets):
        raise ValueError(
            f"{len(translations)} translations and {len(targets)} targets, "
            "allowed: the same number, at least one"
        )

    metric = sacrebleu.BLEU()
    return metric.corpus_score(list(translations), [list(targets)]).score, str(
        metric.get_signature()
    )
