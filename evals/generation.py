"""Generation of sentences by beam search, and BLEU, for translation and captioning.

BLEU (Papineni et al. 2002) is sacrebleu's, of whole sentences as they are, from 0 to 100; its
signature is kept with the numbers.
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
    """A sentence that a model wrote.

    text; tokens: int [time], with the end if it has one; score: log p of all of them, in nats.
    """

    text: str
    tokens: np.ndarray
    score: float


def has_bleu() -> bool:
    """Whether sacrebleu is installed: metrics are measured without it too."""
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
    """What a beam search finds, <unk> never, of inputs as ``zoo.base.Conditional.encode`` takes them; greedily with a beam of 1.

    A beam search of that width would write on past an end that was the most probable token.
    """
    memory, carry = module.encode(cfg, params, inputs)

    def step(carry: Any, tokens: Any) -> Any:
        return module.decode_step(cfg, params, carry, tokens, memory)

    first = jnp.full(len(jax.tree.leaves(inputs)[0]), END, jnp.int32)
    how = {"end": END, "suppressed": (UNKNOWN,)}
    if beam == 1:
        return jax.tree.map(lambda leaf: leaf[:, None], greedy(step, carry, first, length, **how))
    return beam_search(step, carry, first, length, width=beam, length_penalty=length_penalty, **how)


def bleu(translations: Sequence[str], targets: Sequence[str]) -> tuple[float, str]:
    """BLEU of a corpus, 0 to 100, and sacrebleu's signature.  Raises ValueError without any, or unless each has a target."""
    import sacrebleu

    if not translations or len(translations) != len(targets):
        raise ValueError(
            f"{len(translations)} translations and {len(targets)} targets, allowed: as many, at least one"
        )

    metric = sacrebleu.BLEU()
    return metric.corpus_score(list(translations), [list(targets)]).score, str(
        metric.get_signature()
    )
