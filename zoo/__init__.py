"""Classic deep-learning models as pure JAX functions.

    import jax, zoo

    mlp, cfg = zoo.create("mlp/tanh500")
    params = mlp.init(cfg, jax.random.key(0))
    logits = jax.jit(mlp.apply)(cfg, params, images)

``zoo.base`` states the contract that every model follows; ``zoo.interop`` converts to flax, safetensors and ``jax.export``.
"""

import difflib
import fnmatch
from typing import Any

from zoo import (
    attention,
    autoencoder,
    base,
    captioner,
    conv_autoencoder,
    convnet,
    convolution,
    dbn,
    decode,
    decoder,
    fcn,
    hard_captioner,
    language,
    layers,
    likelihood,
    matlab,
    mlp,
    nnlm,
    rbm,
    recurrence,
    recurrent_weights,
    rnn,
    rnnlm,
    seq2seq,
)
from zoo.base import (
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
    static,
)

__all__ = [
    "MODELS", "Autoencoder", "Aux", "Batch", "Conditional", "EnergyModel", "Generative", "Model",
    "Outputs", "Params", "Recurrent",
    "attention", "autoencoder", "base", "captioner", "conv_autoencoder", "convnet", "convolution", "create", "dbn", "decode",
    "decoder", "fcn", "hard_captioner", "language", "layers", "likelihood", "list_models", "matlab", "mlp", "nnlm", "rbm",
    "recurrence", "recurrent_weights", "rnn", "rnnlm", "seq2seq", "static",
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
    "seq2seq": seq2seq,
    "captioner": captioner,
    "hard_captioner": hard_captioner,
    "fcn": fcn,
}
"""Every model module by name."""


def list_models(pattern: str = "*") -> list[str]:
    """Names "model/preset" that match a shell pattern: ``list_models("mlp/*")``."""
    names = [f"{model}/{preset}" for model, module in MODELS.items() for preset in module.PRESETS]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


def create(name: str, **overrides: Any) -> tuple[Model, Any]:
    """The module and Config of "model/preset", with fields replaced: ``create("mlp/tanh500", dropout=0.5)``.

    Raises ValueError for an unknown name (with the nearest one) or field.
    """
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3)
        raise ValueError(f"no model {name!r}; " + ("did you mean " + " or ".join(near) if near else "see zoo.list_models()"))
    model, preset = name.split("/")
    return MODELS[model], base.replace(MODELS[model].PRESETS[preset], **overrides)
