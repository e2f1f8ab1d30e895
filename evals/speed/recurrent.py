"""Recurrent networks: training steps, generation, and a layer's gradient by sequence length."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import zoo
from evals.speed.contenders import BackToBack
from evals.speed.workloads import Workload, masked_cross_entropy
from zoo.base import Params
from zoo.interop import recurrent_weights
from zoo.parts import recurrence
from zoo.parts.language import generate

FRAME, PHONEMES = 40, 61
"""Features of a frame of speech, and number of classes."""


def lstm_lm(
    batch: int = 20, units: int = 650, length: int = 35, vocabulary: int = 10_000
) -> Workload:
    """The medium model of Zaremba et al. 2014 without dropout: two layers, words."""
    return language(
        zoo.rnnlm.Config(vocabulary=vocabulary, features=units, units=(units, units)), batch, length
    )


def lstm_chars(batch: int = 32, units: int = 128, length: int = 100) -> Workload:
    """One layer, characters."""
    return language(zoo.rnnlm.Config(vocabulary=64, features=64, units=(units,)), batch, length)


def language(cfg: zoo.rnnlm.Config, batch: int, length: int) -> Workload:
    """A language model on random tokens; each row is a separate text."""
    tokens = jax.random.randint(jax.random.key(2), (batch, length + 1), 0, cfg.vocabulary)
    arrays = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": jnp.ones((batch, length), bool),
        "reset": jnp.ones(batch, bool),
    }
    network = RecurrentNetwork(cfg.units, cfg.vocabulary, embedding=(cfg.vocabulary, cfg.features))
    return Workload(
        zoo.rnnlm,
        cfg,
        arrays,
        network,
        functools.partial(torch_recurrent, network, cfg.features),
        torch_params,
        flax_params,
    )


def lstm_ragged(batch: int = 16, units: int = 256, length: int = 200) -> Workload:
    """Two bidirectional layers that classify each frame of utterances.

    The utterances' lengths range from half of ``length`` to ``length``.
    """
    cfg = zoo.rnn.Config(
        inputs=FRAME, units=(units, units), output_units=PHONEMES, bidirectional=True
    )
    keys = jax.random.split(jax.random.key(2), 2)
    lengths = jnp.asarray(
        np.random.default_rng(0).permutation(
            np.linspace(length / 2, length, batch).round().astype(int)
        )
    )
    arrays = {
        "inputs": jax.random.normal(keys[0], (batch, length, FRAME)),
        "targets": jax.random.randint(keys[1], (batch, length), 0, PHONEMES),
        "mask": jnp.arange(length)[None] < lengths[:, None],
    }
    network = RecurrentNetwork(cfg.units, cfg.output_units, bidirectional=True)
    make = functools.partial(torch_recurrent, network, FRAME, tuple(lengths.tolist()))
    return Workload(
        zoo.rnn,
        cfg,
        arrays,
        network,
        make,
        torch_params,
        flax_params,
        lengths,
        flax_loss=masked_cross_entropy,
    )


RECURRENT: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {
    "lstm-lm": (lstm_lm, {"flax": 0.5, "torch": 1.05, "compile": 1.0}),
    "lstm-chars": (lstm_chars, {"flax": 0.5, "torch": 1.3, "compile": 1.0}),
    "lstm-ragged": (lstm_ragged, {"flax": 0.5, "torch": 1.3, "compile": 1.0}),
}
"""See ``evals.speed.workloads.WORKLOADS``."""


WRITERS = {
    "generate": zoo.rnnlm.Config(vocabulary=64, features=64, units=(128,)),
    "generate, 2x650": zoo.rnnlm.Config(vocabulary=10_000, features=650, units=(650, 650)),
}
"""{row: a language model}."""
TOKENS = 200
"""Length of a generated text."""
LENGTHS = (50, 100, 200, 400)
"""Time steps of the sequences over which a layer is unrolled."""


class RecurrentNetwork(nn.Module):
    """LSTM layers and a dense output layer in flax, with an embedding if inputs are tokens."""

    units: tuple[int, ...]
    outputs: int
    embedding: tuple[int, int] | None = None
    bidirectional: bool = False

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        """Inputs [batch, time, ...], lengths [batch] -> logits [batch, time, outputs]."""
        if self.embedding:
            x = nn.Embed(*self.embedding, name="embedding")(x)
        for index, units in enumerate(self.units):
            forward = nn.RNN(nn.OptimizedLSTMCell(units, name=f"forward_{index}"))
            backward = (
                nn.RNN(nn.OptimizedLSTMCell(units, name=f"backward_{index}"))
                if self.bidirectional
                else None
            )
            layer: Any = nn.Bidirectional(forward, backward) if backward else forward
            x = layer(x, seq_lengths=lengths)
        return nn.Dense(self.outputs, name="output")(x)


def _directions(params: Params) -> list[tuple[str, int, Params]]:
    """("forward" or "backward", layer index, params) of all recurrent layers, in torch's order."""
    directions = []
    for index in range(sum(name.startswith("layer_") for name in params)):
        layer = params[f"layer_{index}"]
        ends = layer if "forward" in layer else {"forward": layer}
        directions += [(end, index, ends[end]) for end in ("forward", "backward") if end in ends]
    return directions


def flax_params(params: Params) -> Params:
    """The zoo's params under the names of ``RecurrentNetwork``."""
    cells = {
        f"{end}_{index}": recurrent_weights.to_flax("lstm", layer)
        for end, index, layer in _directions(params)
    }
    return cells | {
        name: leaves for name, leaves in params.items() if not name.startswith("layer_")
    }


def torch_params(params: Params) -> list[Any]:
    """The zoo's params in the order and layout of ``torch_recurrent``'s trained parameters."""
    arrays = [params["embedding"]["embedding"]] if "embedding" in params else []
    for end, index, layer in _directions(params):
        tensors = recurrent_weights.to_torch("lstm", layer, index, reverse=end == "backward")
        arrays += [array for name, array in tensors.items() if not name.startswith("bias_hh")]
    return [*arrays, params["output"]["kernel"].T, params["output"]["bias"]]


def torch_recurrent(network: RecurrentNetwork, features: int, lengths: tuple[int, ...] = ()) -> Any:
    """The same in torch.  lengths: of the sequences; () if all have the same length.

    The second of torch's two biases per cell is fixed at zero: if both were trained, the updates of
    their sum would be twice as large.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # pyright: ignore[reportMissingImports]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = (
                torch.nn.Embedding(*network.embedding) if network.embedding else torch.nn.Identity()
            )
            bidirectional, (units, *upper) = network.bidirectional, network.units
            self.layers = torch.nn.LSTM(
                features,
                units,
                1 + len(upper),
                batch_first=True,
                bidirectional=bidirectional,
            )
            self.output = torch.nn.Linear(units * (2 if bidirectional else 1), network.outputs)
            for name, leaf in self.layers.named_parameters():
                if name.startswith("bias_hh"):
                    torch.nn.init.zeros_(leaf).requires_grad_(False)

        def forward(self, x: Any) -> Any:
            x = self.embedding(x)
            if lengths:
                packed = pack_padded_sequence(
                    x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
                )
                x, _ = pad_packed_sequence(self.layers(packed)[0], batch_first=True)
            else:
                x, _ = self.layers(x)
            return self.output(x)

    return Network()


class Generated(BackToBack):
    """Text generation by ``zoo.parts.language.generate``, one compiled loop."""

    def __init__(self, cfg: zoo.rnnlm.Config, tokens: int = TOKENS, rows: int = 1) -> None:
        """tokens: length of each text; rows: number of texts generated at once."""
        self.cfg, self.params = cfg, jax.jit(zoo.rnnlm.init)(cfg, jax.random.key(1))
        self.tokens, self.prompt, self.keys = (
            tokens,
            jnp.zeros((rows, 1), int),
            jax.random.split(jax.random.key(0), rows),
        )

    def step(self) -> None:
        """Starts generating texts [rows, tokens]."""
        self.outputs = generate(
            zoo.rnnlm, self.cfg, self.params, self.prompt, self.tokens, self.keys
        )

    def wait(self) -> None:
        """Waits until the last text is finished."""
        jax.block_until_ready(self.outputs)


class Looped(Generated):
    """The same texts by an asynchronous Python loop over a jitted step that draws the token."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """The same arguments as ``Generated``."""
        super().__init__(*arguments, **more)

        def token(
            params: Params, carry: Any, logits: Array, keys: Array, index: Any
        ) -> tuple[Any, Array, Array]:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            drawn = jax.vmap(jax.random.categorical)(keys, logits).astype(self.prompt.dtype)
            return *zoo.rnnlm.step(self.cfg, params, carry, drawn), drawn

        self.token = jax.jit(token, donate_argnums=1)
        self.start = jax.jit(functools.partial(zoo.rnnlm.step, self.cfg))
        self.carry = zoo.rnnlm.initial_carry(self.cfg, self.params, len(self.prompt))
        self.indices = [np.int32(index) for index in range(self.tokens)]

    def step(self) -> None:
        """Dispatches all steps; the outputs are a list of tokens [rows]."""
        (carry, logits), self.outputs = self.start(self.params, self.carry, self.prompt[:, 0]), []
        for index in self.indices:
            carry, logits, drawn = self.token(self.params, carry, logits, self.keys, index)
            self.outputs.append(drawn)


class Unrolled(BackToBack):
    """Parameter gradient of a layer of ``lstm-chars`` over sequences of a given length."""

    def __init__(
        self, length: int, *, remat: bool, batch: int = 32, features: int = 64, units: int = 128
    ) -> None:
        """remat: see ``zoo.parts.recurrence.unroll``."""

        def objective(params: Params, carry: Array, inputs: Array) -> Array:
            return jnp.sum(
                jnp.square(recurrence.unroll("lstm", params, carry, inputs, remat=remat)[1])
            )

        keys = jax.random.split(jax.random.key(0), 2)
        params = jax.jit(lambda key: recurrence.init("lstm", key, features, units))(keys[0])
        inputs = jax.random.normal(keys[1], (batch, length, features))
        self.arguments = params, recurrence.initial_carry("lstm", params, batch), inputs
        self.compiled = jax.jit(jax.grad(objective)).lower(*self.arguments).compile()

    def step(self) -> None:
        """Starts computing the gradient."""
        self.outputs = self.compiled(*self.arguments)

    def wait(self) -> None:
        """Waits until the device is idle."""
        jax.block_until_ready(self.outputs)

    def memory(self) -> float:
        """Bytes of intermediate results, from the compiler's analysis."""
        analysis = self.compiled.memory_analysis()
        return analysis.temp_size_in_bytes if analysis else math.nan
