"""An encoder-decoder network with attention: its training step, and beam search."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import zoo
from evals.speed.contenders import BackToBack
from evals.speed.workloads import Workload
from zoo.base import Conditional, Params
from zoo.interop import recurrent_weights
from zoo.parts.decode import Hypotheses, beam_search
from zoo.parts.recurrence import Cell


def translation(
    batch: int = 64, units: int = 256, length: int = 20, vocabulary: int = 8000
) -> Workload:
    """A smaller version of Bahdanau et al. 2014 with GRUs; embeddings have ``units`` features.

    All sentences have the same length.
    """
    cfg = network(units, vocabulary)
    keys = jax.random.split(jax.random.key(2), 2)
    target = jax.random.randint(keys[1], (batch, length + 1), 0, vocabulary)
    arrays = {
        "inputs": {**sources(cfg, keys[0], batch, length), "target": target[:, :-1]},
        "targets": target[:, 1:],
        "mask": jnp.ones((batch, length), bool),
    }
    return Workload(
        zoo.seq2seq,
        cfg,
        arrays,
        Translator(cfg),
        lambda: torch_translator(cfg),
        torch_params,
        flax_params,
    )


TRANSLATION: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {
    "translation": (translation, {"flax": 0.6, "torch": 1.0, "compile": 1.0}),
}
"""See ``evals.speed.workloads.WORKLOADS``."""


def network(units: int = 256, vocabulary: int = 8000) -> zoo.seq2seq.Config:
    """A bidirectional encoder, and a decoder whose layer reads contexts of additive attention."""
    return zoo.seq2seq.Config(
        source_vocabulary=vocabulary,
        vocabulary=vocabulary,
        features=units,
        encoder_units=(units,),
        decoder_units=(units,),
    )


def sources(cfg: zoo.seq2seq.Config, key: Array, batch: int, length: int) -> dict[str, Array]:
    """Random sentences, all of the same length."""
    tokens = jax.random.randint(key, (batch, length), 0, cfg.source_vocabulary)
    return {"source": tokens, "lengths": jnp.full(batch, length)}


class AttendingCell(nn.Module):
    """A step of the decoder.  kind: its cell.  gated: a gate from the state scales the context."""

    units: int
    kind: Callable[..., nn.RNNCellBase] = nn.GRUCell
    gated: bool = False

    @nn.compact
    def __call__(
        self, state: Any, embedded: Array, keys: Array, annotations: Array
    ) -> tuple[Any, tuple[Array, Array]]:
        """State, embedded tokens [batch, features] -> new state, (cell output, context)."""
        hidden = state[1] if isinstance(state, tuple) else state
        query = nn.Dense(self.units, use_bias=False, name="query")(hidden)
        scores = nn.Dense(1, use_bias=False, name="score")(nn.tanh(query[:, None] + keys))
        context = jnp.einsum("bp,bpf->bf", nn.softmax(scores[..., 0]), annotations)
        if self.gated:
            context = nn.sigmoid(nn.Dense(1, name="gate")(hidden)) * context
        state, hidden = self.kind(self.units, name="cell")(
            state, jnp.concatenate([embedded, context], axis=-1)
        )
        return state, (hidden, context)


class Writer(nn.Module):
    """A decoder in flax: logits are computed for all steps at once, after the scan.

    kind, gated: see ``AttendingCell``.
    """

    vocabulary: int
    features: int
    units: int
    kind: Callable[..., nn.RNNCellBase] = nn.GRUCell
    gated: bool = False

    @nn.compact
    def __call__(self, state: Any, annotations: Array, tokens: Array) -> Array:
        """Initial state, annotations, tokens [batch, time] -> logits [batch, time, vocabulary]."""
        keys = nn.Dense(self.units, name="key")(annotations)
        embedded = nn.Embed(self.vocabulary, self.features, name="target")(tokens)
        axes: Any = (1, nn.broadcast, nn.broadcast)
        scan = nn.scan(
            AttendingCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=axes,
            out_axes=1,
        )
        step = scan(self.units, self.kind, self.gated, name="decoder")
        _, (hidden, context) = step(state, embedded, keys, annotations)
        read = nn.Dense(self.features, name="readout")(
            jnp.concatenate([hidden, context, embedded], axis=-1)
        )
        return nn.Dense(self.vocabulary, name="output")(nn.tanh(read))


class Translator(nn.Module):
    """The network of ``translation`` in flax."""

    cfg: zoo.seq2seq.Config

    @nn.compact
    def __call__(self, x: dict[str, Array]) -> Array:
        """Inputs as in the zoo -> logits [batch, time, vocabulary]."""
        cfg, units = self.cfg, self.cfg.decoder_units[0]
        source = nn.Embed(cfg.source_vocabulary, cfg.features, name="source")(x["source"])
        forward, backward = (
            nn.RNN(nn.GRUCell(cfg.encoder_units[0], name=name)) for name in ("forward", "backward")
        )
        last, annotations = nn.Bidirectional(forward, backward, return_carry=True)(source)
        start = nn.tanh(nn.Dense(units, name="bridge")(jnp.concatenate(last, axis=-1)))
        return Writer(cfg.vocabulary, cfg.features, units, name="writer")(
            start, annotations, x["target"]
        )


def flax_params(params: Params) -> Params:
    """The zoo's params under the names of ``Translator``."""
    ends = params["encoder"]["layer_0"]
    return {
        "source": params["source"],
        **{name: recurrent_weights.to_flax("gru", ends[name]) for name in ("forward", "backward")},
        "bridge": params["bridge"]["layer_0"],
        "writer": flax_writer_params("gru", params),
    }


def flax_writer_params(cell: Cell, params: Params) -> Params:
    """A decoder's params under the names of ``Writer``."""
    attention = params["attention"]
    return {
        **{name: params[name] for name in ("target", "readout", "output")},
        "key": attention["key"],
        "decoder": {
            "query": attention["query"],
            "score": {"kernel": attention["score"]["kernel"][:, None]},
            "cell": recurrent_weights.to_flax(cell, params["decoder"]["layer_0"]),
            **{name: attention[name] for name in {"gate"} & attention.keys()},
        },
    }


def torch_params(params: Params) -> list[Any]:
    """The zoo's params in the order and layout of ``torch_translator``'s parameters."""
    ends = params["encoder"]["layer_0"]
    return [
        params["source"]["embedding"],
        *torch_cell("gru", ends["forward"]),
        *torch_cell("gru", ends["backward"]),
        *torch_linear(params["bridge"]["layer_0"]),
        *torch_writer_params("gru", params),
    ]


def torch_writer_params(cell: Cell, params: Params) -> list[Any]:
    """A decoder's params in the order and layout of ``torch_writer``'s trained parameters."""
    attention = params["attention"]
    return [
        params["target"]["embedding"],
        *torch_linear(attention["key"]),
        *torch_linear(attention["query"]),
        attention["score"]["kernel"][None],
        *(torch_linear(attention["gate"]) if "gate" in attention else []),
        *torch_cell(cell, params["decoder"]["layer_0"]),
        *torch_linear(params["readout"]),
        *torch_linear(params["output"]),
    ]


def torch_linear(layer: Params) -> list[Any]:
    """Kernel, and bias if the layer has one, in torch's layout."""
    return [layer["kernel"].T, *([layer["bias"]] if "bias" in layer else [])]


def torch_cell(cell: Cell, layer: Params) -> list[Any]:
    """The trained arrays of a recurrent layer, in torch's layout."""
    tensors = recurrent_weights.to_torch(cell, layer)
    return [
        array for name, array in tensors.items() if cell == "gru" or not name.startswith("bias_hh")
    ]


def torch_translator(cfg: zoo.seq2seq.Config) -> Any:
    """The same in torch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import GRU, Embedding, Linear  # pyright: ignore[reportMissingImports]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            units = cfg.decoder_units[0]
            self.source = Embedding(cfg.source_vocabulary, cfg.features)
            self.encoder = GRU(
                cfg.features, cfg.encoder_units[0], batch_first=True, bidirectional=True
            )
            self.bridge = Linear(cfg.annotation_size, units)
            self.writer = torch_writer(
                "gru", cfg.vocabulary, cfg.features, units, cfg.annotation_size
            )
            freeze_second_biases(self.encoder, "gru")

        def forward(self, x: Any) -> Any:
            annotations, last = self.encoder(self.source(x["source"]))
            state = torch.tanh(self.bridge(torch.cat(tuple(last), dim=1)))
            return self.writer(state, annotations, x["target"])

    return Network()


def torch_writer(
    cell: Cell, vocabulary: int, features: int, units: int, annotation: int, gated: bool = False
) -> Any:
    """A decoder in torch; its loop over steps contains only work that depends on the state.

    annotation: size of an annotation vector.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import Embedding, GRUCell, Linear, LSTMCell  # pyright: ignore[reportMissingImports]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.target, self.key = Embedding(vocabulary, features), Linear(annotation, units)
            self.query, self.score = Linear(units, units, bias=False), Linear(units, 1, bias=False)
            self.gate = Linear(units, 1) if gated else None
            self.cell = {"gru": GRUCell, "lstm": LSTMCell}[cell](features + annotation, units)
            self.readout, self.output = (
                Linear(units + annotation + features, features),
                Linear(features, vocabulary),
            )
            freeze_second_biases(self.cell, cell)

        def forward(self, state: Any, annotations: Any, tokens: Any) -> Any:
            keys, embedded = self.key(annotations), self.target(tokens)
            hidden, states, contexts = state[0] if cell == "lstm" else state, [], []
            for token in embedded.unbind(1):
                scores = self.score(torch.tanh(keys + self.query(hidden)[:, None]))
                context = torch.bmm(torch.softmax(scores, dim=1).mT, annotations)[:, 0]
                if self.gate is not None:
                    context = torch.sigmoid(self.gate(hidden)) * context
                state = self.cell(torch.cat([token, context], dim=1), state)
                hidden = state[0] if cell == "lstm" else state
                states.append(hidden)
                contexts.append(context)
            read = torch.cat(
                [torch.stack(states, dim=1), torch.stack(contexts, dim=1), embedded], dim=-1
            )
            return self.output(torch.tanh(self.readout(read)))

    return Network()


def freeze_second_biases(layers: Any, cell: Cell) -> None:
    """Fixes the second of torch's two biases per gate at zero.

    If both were trained, the updates of their sum would be twice as large.  The candidate of a GRU
    keeps both, as in the zoo.
    """
    import torch  # pyright: ignore[reportMissingImports]

    for name, leaf in layers.named_parameters():
        if "bias_hh" in name and cell == "gru":
            candidate = (torch.arange(len(leaf)) >= len(leaf) * 2 // 3).float()
            leaf.register_hook(candidate.mul)
        elif "bias_hh" in name:
            torch.nn.init.zeros_(leaf).requires_grad_(False)


FIRST, END = 0, 1
"""Start and end tokens."""


class Task(NamedTuple):
    """Input of a search: a module, its Config, a batch of inputs; length: most tokens written."""

    module: Conditional
    cfg: Any
    inputs: dict[str, Array]
    length: int


def sentences(batch: int = 16, length: int = 20, cfg: zoo.seq2seq.Config | None = None) -> Task:
    """Translations of random sentences, at most as long as these."""
    cfg = cfg or network()
    return Task(zoo.seq2seq, cfg, sources(cfg, jax.random.key(2), batch, length), length)


class Searched(BackToBack):
    """``zoo.parts.decode.beam_search``, with encoder and search in one compiled program.

    By default END is suppressed, so that no hypothesis ends and all contenders take all steps.
    """

    def __init__(
        self,
        task: Task,
        width: int = 5,
        suppressed: tuple[int, ...] = (END,),
        params: Params | None = None,
    ) -> None:
        """params: drawn unless given."""
        (self.module, self.cfg, self.inputs, self.length), self.width, self.suppressed = (
            task,
            width,
            suppressed,
        )
        self.batch = len(jax.tree.leaves(self.inputs)[0])
        self.params = params or jax.jit(self.module.init)(self.cfg, jax.random.key(1))
        self.prepare()

    def prepare(self) -> None:
        """Compiles the functions that ``step`` runs."""

        def write(params: Params, inputs: dict[str, Array]) -> Hypotheses:
            memory, carry = self.module.encode(self.cfg, params, inputs)
            advance = functools.partial(self.module.decode_step, self.cfg, params, memory=memory)
            first = jnp.full(self.batch, FIRST)
            return beam_search(
                advance,
                carry,
                first,
                self.length,
                end=END,
                width=self.width,
                suppressed=self.suppressed,
            )

        self.write = jax.jit(write)

    def step(self) -> None:
        """Starts a search."""
        self.outputs = self.write(self.params, self.inputs)

    def wait(self) -> None:
        """Waits until the search is finished."""
        jax.block_until_ready(self.outputs)

    def best(self) -> np.ndarray:
        """Tokens of the best hypotheses [batch, length]."""
        return np.asarray(self.outputs.tokens[:, 0])


CHECK = 5
"""Steps between checks whether all searches are done; a check waits for the device."""


class SearchedInPython(Searched):
    """The same search by an asynchronous Python loop over a jitted step of the search.

    Partial and ended hypotheses are stored as full token sequences, which are gathered in every
    step.
    """

    def prepare(self) -> None:
        """Jits the start and a step of the search."""
        cfg, batch, width, length = self.cfg, self.batch, self.width, self.length

        def start(params: Params, inputs: dict[str, Array]) -> tuple[Any, dict[str, Any]]:
            memory, carry = self.module.encode(cfg, params, inputs)
            no_scores, tokens = (
                jnp.full((batch, width), -jnp.inf),
                jnp.full((batch, width, length), END),
            )
            search = {
                "index": 0,
                "carry": jax.tree.map(lambda leaf: jnp.repeat(leaf, width, axis=0), carry),
                "last": jnp.full((batch, width), FIRST),
                "scores": no_scores.at[:, 0].set(0),
                "tokens": tokens,
                "best": no_scores,
                "ended": tokens,
            }
            return memory, search

        def advance(
            params: Params, memory: Any, search: dict[str, Any]
        ) -> tuple[dict[str, Any], Array]:
            index, living, best = search["index"], search["scores"], search["best"]
            carry, logits = self.module.decode_step(
                cfg, params, search["carry"], search["last"].reshape(-1), memory
            )
            log_p = (
                jax.nn.log_softmax(logits).at[:, jnp.asarray(self.suppressed, int)].set(-jnp.inf)
            )
            scores = living[..., None] + log_p.reshape(batch, width, -1)
            done = self.done(best, living)[:, None]
            finished = jnp.where(done, -jnp.inf, scores[:, :, END] / norm(index + 1))
            best, order = jax.lax.top_k(jnp.concatenate([best, finished], axis=1), width)
            # Token sequences are filled with END, so a hypothesis that ends now needs no change.
            ended = jnp.concatenate([search["ended"], search["tokens"]], axis=1)
            living, flat = jax.lax.top_k(
                scores.at[:, :, END].set(-jnp.inf).reshape(batch, -1), width
            )
            parents, last = flat // cfg.vocabulary, flat % cfg.vocabulary
            rows = (jnp.arange(batch)[:, None] * width + parents).reshape(-1)
            after = {
                "index": index + 1,
                "carry": jax.tree.map(lambda leaf: leaf[rows], carry),
                "last": last,
                "scores": living,
                "tokens": jnp.take_along_axis(search["tokens"], parents[..., None], axis=1)
                .at[:, :, index]
                .set(last),
                "best": best,
                "ended": jnp.take_along_axis(ended, order[..., None], axis=1),
            }
            return after, jnp.all(self.done(best, living))

        self.start, self.advance = jax.jit(start), jax.jit(advance, donate_argnums=2)

    def done(self, best: Any, living: Any) -> Any:
        """[batch]: whether no living hypothesis can overtake the best ended one."""
        return best[:, 0] >= living.max(axis=1) / norm(self.length)

    def step(self) -> None:
        """Searches; checks every few steps whether more are needed."""
        memory, search = self.start(self.params, self.inputs)
        for index in range(1, self.length + 1):
            search, done = self.advance(self.params, memory, search)
            if index % CHECK == 0 and index < self.length and done:
                break
        self.outputs = {name: search[name] for name in ("tokens", "best", "ended")}

    def best(self) -> np.ndarray:
        """Tokens of the best ended, otherwise the best partial, hypotheses [batch, length]."""
        best, ended, tokens = (
            np.asarray(self.outputs[name]) for name in ("best", "ended", "tokens")
        )
        return np.where(np.isfinite(best[:, :1]), ended[:, 0], tokens[:, 0])


class SearchedInNumpy(SearchedInPython):
    """The same search in numpy; only the model's step and the gather of carries are jitted."""

    def prepare(self) -> None:
        """Jits the encoder and a step of the decoder."""

        def advance(
            params: Params, memory: Any, carry: Any, rows: Array, tokens: Array
        ) -> tuple[Any, Array]:
            return self.module.decode_step(
                self.cfg, params, jax.tree.map(lambda leaf: leaf[rows], carry), tokens, memory
            )

        self.encode = jax.jit(functools.partial(self.module.encode, self.cfg))
        self.advance = jax.jit(advance)

    def step(self) -> None:
        """Runs the search."""
        batch, width, length = self.batch, self.width, self.length
        batch_index = np.arange(batch)[:, None]
        memory, carry = self.encode(self.params, self.inputs)
        rows, last = np.repeat(np.arange(batch), width), np.full((batch, width), FIRST)
        living = np.full((batch, width), -np.inf, np.float32)
        living[:, 0] = 0
        best = np.full((batch, width), -np.inf, np.float32)
        tokens = ended = np.full((batch, width, length), END)
        for index in range(length):
            carry, logits = self.advance(self.params, memory, carry, rows, last.reshape(-1))
            scores = np.array(logits)
            scores -= scores.max(axis=1, keepdims=True)
            # Fold score and log normalizer into one number per hypothesis: one pass over the array.
            scores += living.reshape(-1, 1) - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            scores[:, self.suppressed] = -np.inf
            finished = scores[:, END].reshape(batch, width) / np.float32(norm(index + 1))
            finished[self.done(best, living)] = -np.inf
            scores[:, END] = -np.inf
            scores = scores.reshape(batch, -1)
            flat = np.argpartition(scores, -width, axis=1)[:, -width:]
            flat = flat[batch_index, np.argsort(-scores[batch_index, flat], axis=1)]
            living = scores[batch_index, flat]
            parents, last = np.divmod(flat, self.cfg.vocabulary)
            best, ended = (
                np.concatenate([best, finished], axis=1),
                np.concatenate([ended, tokens], axis=1),
            )
            order = np.argsort(-best, axis=1, kind="stable")[:, :width]
            best, ended = best[batch_index, order], ended[batch_index, order]
            tokens = tokens[batch_index, parents]
            tokens[:, :, index] = last
            rows = (batch_index * width + parents).reshape(-1)
            if self.done(best, living).all():
                break
        self.outputs = {"tokens": tokens, "best": best, "ended": ended}


def norm(length: Any) -> Any:
    """The divisor of log p for a text of this length: see ``zoo.parts.decode.normalised``."""
    return (5 + length) / 6


SEARCHES: dict[str, type[Searched]] = {
    "zoo": Searched,
    "numpy": SearchedInNumpy,
    "Python loop": SearchedInPython,
}
"""{contender: class}."""
