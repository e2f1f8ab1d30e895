"""Classic deep-learning models as pure JAX functions.

    import jax, zoo

    mlp, cfg = zoo.create("mlp/tanh500")
    params = mlp.init(cfg, jax.random.key(0))
    logits = jax.jit(mlp.apply)(cfg, params, images)

Every module of this package is one model family, except ``zoo.base``, which defines the interface
they share.  ``zoo.parts`` holds components that several models use.  ``zoo.interop`` converts to
flax, safetensors, torchvision and ``jax.export``; import it explicitly.
"""

import difflib
import fnmatch
from typing import Any

from zoo import (
    autoencoder,
    base,
    captioner,
    conv_autoencoder,
    convnet,
    ctc,
    dbn,
    fcn,
    hard_captioner,
    mlp,
    nnlm,
    parts,
    rbm,
    rnn,
    rnnlm,
    seq2seq,
)
from zoo.base import (
    Adaptable,
    Autoencoder,
    Aux,
    Batch,
    Conditional,
    EnergyModel,
    Generative,
    Model,
    Outputs,
    Params,
    Recurrent,
)
from zoo.parts.config import replace, static

__all__ = [
    "MODELS", "Adaptable", "Autoencoder", "Aux", "Batch", "Conditional", "EnergyModel",
    "Generative", "Model", "Outputs", "Params", "Recurrent",
    "autoencoder", "base", "captioner", "conv_autoencoder", "convnet", "create", "ctc", "dbn",
    "fcn", "hard_captioner", "list_models", "mlp", "nnlm", "parts", "rbm", "rnn", "rnnlm",
    "seq2seq", "static",
]  # fmt: skip
__version__ = "0.2.0.dev0"

MODELS: dict[str, Model] = {
    "mlp": mlp,
    "convnet": convnet,
    "rbm": rbm,
    "dbn": dbn,
    "autoencoder": autoencoder,
    "conv_autoencoder": conv_autoencoder,
    "rnn": rnn,
    "nnlm": nnlm,
    "rnnlm": rnnlm,
    "ctc": ctc,
    "seq2seq": seq2seq,
    "captioner": captioner,
    "hard_captioner": hard_captioner,
    "fcn": fcn,
}
"""All model modules by name."""


def list_models(pattern: str = "*") -> list[str]:
    """Names "model/preset" that match a shell pattern: ``list_models("mlp/*")``.

    Example::

        >>> import zoo
        >>> zoo.list_models("seq2seq/[lm]*")
        ['seq2seq/multi30k', 'seq2seq/luong']
    """
    names = [f"{model}/{preset}" for model, module in MODELS.items() for preset in module.PRESETS]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


def create(name: str, **overrides: Any) -> tuple[Model, Any]:
    """The module and Config of "model/preset", with fields overridden.

    Raises ValueError for an unknown name (with the nearest one) or field.

    Example::

        >>> import jax
        >>> import zoo
        >>> mlp, cfg = zoo.create("mlp/tiny", dropout=0.5)
        >>> cfg.sizes, cfg.dropout
        ((6, 5, 5, 3), 0.5)
        >>> params = mlp.init(cfg, jax.random.key(0))
        >>> mlp.apply(cfg, params, jax.numpy.zeros((2, 6))).shape
        (2, 3)
    """
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3)
        raise ValueError(
            f"no model {name!r}; "
            + ("did you mean " + " or ".join(near) if near else "see zoo.list_models()")
        )
    model, preset = name.split("/")
    return MODELS[model], replace(MODELS[model].PRESETS[preset], **overrides)
