"""Image captioning: an image becomes a sentence (review, figure 3).

After "Show and Tell" (Vinyals et al. 2014) and "Show, Attend and Tell" (Xu et al. 2015).

The last feature map of a ``zoo.convnet`` provides one annotation vector a_1 ... a_L per location,
in row-major order.  ``zoo.parts.decoder`` generates the sentence, starting from a state computed
from the mean annotation:

attention "none"
    The decoder receives only the mean annotation (Vinyals et al. 2014).
attention "soft"
    For each word, it receives a weighted mean of the annotations, scaled by a gate (Xu et al. 2015,
    section 4.2: equation 13, and beta in 4.2.1).

``zoo.hard_captioner`` attends to a single location instead.  In training, the penalty lambda
sum_i (1 - sum_t alpha_ti)^2 for each image (equation 14) encourages soft attention to give each
location a total weight of about one.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from zoo import convnet
from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding
from zoo.parts import decoder, recurrent_layers
from zoo.parts.checking import require, require_shape
from zoo.parts.config import NonNegativeFloat, PositiveInt, Rate, static
from zoo.parts.decoder import Carry, Choose, Memory
from zoo.parts.language import next_token_loss
from zoo.parts.layers import ComputeDtype, at_least_float32, dropout, mask_of_steps, split_keys

EXAMPLE_TARGET = 3
"""Tokens of an example; models accept any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A captioner.

    encoder: the network whose stages encode the image; its dense layers are unused.
    vocabulary: number of tokens; training sets it to that of the captions.
    features: size of a token's embedding, and of the input of the softmax.
    units: of the recurrent decoder.
    cell: lstm or gru.
    attention: see the module.
    places: add a learned vector per location to the annotations, so that they encode their
        position.
    coverage: lambda, the weight of the coverage penalty; 0 without attention.
    dropout: probability of dropping a number in training: in annotations, embeddings, and the input
        of the softmax.
    label_smoothing: in training, the probability that a target is replaced by a uniformly random
        token.
    forget_bias: of an LSTM.
    compute_dtype: see ``zoo.convnet``; the encoder has its own.
    """

    encoder: convnet.Config
    vocabulary: PositiveInt
    features: PositiveInt
    units: PositiveInt
    cell: Literal["lstm", "gru"] = "lstm"
    attention: Literal["none", "soft"] = "soft"
    places: bool = True
    coverage: NonNegativeFloat = 0.0
    dropout: Rate = 0.0
    label_smoothing: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require_images(self, self.encoder)
        require(
            self.attention != "none" or self.coverage == 0, self, "coverage", "0 without attention"
        )

    @property
    def input_range(self) -> dict[str, tuple[float, float]]:
        """Allowed range of the inputs that are tokens."""
        return {"target": (0.0, self.vocabulary - 1.0)}

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("targets", Targets(self.vocabulary), likelihood=True)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of locations in height and width."""
        height, width = self.encoder.spaces()[-1]
        return height, width

    @property
    def writer(self) -> decoder.Config:
        """The decoder, which generates the caption."""
        return decoder.Config(
            vocabulary=self.vocabulary,
            features=self.features,
            annotation_size=self.encoder.stages[-1].features,
            layers=recurrent_layers.Config(
                units=(self.units,),
                cell=self.cell,
                dropout=self.dropout,
                forget_bias=self.forget_bias,
                compute_dtype=self.compute_dtype,
            ),
            attention=None if self.attention == "none" else "additive",
            input_feeding=True,
        )


def require_images(cfg: Any, encoder: Any) -> None:
    """Raises ValueError unless ``encoder`` is a ``zoo.convnet.Config`` of images.

    It is the field "encoder" of ``cfg``.
    """
    valid = isinstance(encoder, convnet.Config) and len(encoder.shape) == 3
    require(valid, cfg, "encoder", "a zoo.convnet.Config of images [height, width, channels]")


_stage = convnet.Stage
# The receptive field of a location is about one digit, so that reading several needs attention.
_scenes = convnet.Config(
    shape=(48, 48, 1),
    stages=(
        _stage(features=16, pool="max"),
        _stage(features=32, pool="max"),
        _stage(features=64, pool="max"),
        _stage(features=64, kernel=(1,)),
    ),
)


def _vgg(name: str) -> Config:
    """Xu et al. 2015: the 14x14 map before the last pooling, LSTM 1000 or so, dropout 0.5."""
    network = convnet.PRESETS[name]
    stages = (*network.stages[:-1], replace(network.stages[-1], pool=None))
    encoder = replace(network, stages=stages)
    return Config(
        encoder=encoder,
        vocabulary=10_000,
        features=512,
        units=1000,
        places=False,
        coverage=1.0,
        dropout=0.5,
    )


PRESETS: dict[str, Config] = {
    "tiny": Config(
        encoder=replace(
            convnet.PRESETS["tiny"],
            shape=(4, 4, 1),
            stages=(_stage(features=3, pool="max", activation="tanh"),),
        ),
        vocabulary=5,
        features=4,
        units=6,
        coverage=0.5,
        dropout=0.1,
        label_smoothing=0.1,
    ),
    "digit_scenes": Config(encoder=_scenes, vocabulary=16, features=64, units=128),
    # Hundreds of kinds of objects, in colour.
    "stamp_scenes": Config(
        encoder=convnet.Config(
            shape=(64, 64, 3),
            stages=(
                _stage(features=16, pool="max"),
                _stage(features=48, pool="max"),
                _stage(features=96, pool="max"),
                _stage(features=128, dropout=0.1),
            ),
        ),
        vocabulary=800,
        features=128,
        units=256,
        dropout=0.1,
    ),
    "vgg16": _vgg("vgg16"),
    "vgg19": _vgg("vgg19"),
}


def init(cfg: Config, key: Array) -> Params:
    """{"conv_0": ..., "places": {"embedding" [locations, features]}, ...}.

    See ``zoo.convnet.init`` and ``zoo.parts.decoder.init``.  The stages keep their names, so that
    they can be initialised from a ConvNet or from torchvision
    (``zoo.parts.parameters.restore_matching``).
    """
    encoder_key, *others, gate_key, places_key = jax.random.split(key, 3 + len(decoder.KEYS))
    stages = {
        name: leaf
        for name, leaf in convnet.init(cfg.encoder, encoder_key).items()
        if name.startswith("conv_")
    }
    gate = None if cfg.attention == "none" else gate_key
    params = stages | decoder.init(cfg.writer, dict(zip(decoder.KEYS, others, strict=True)), gate)
    if cfg.places:
        height, width = cfg.grid
        params["places"] = {
            "embedding": 0.1
            * jax.random.normal(places_key, (height * width, cfg.writer.annotation_size))
        }
    return params


def apply(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> Array:
    """Logits [batch, time, vocabulary] of each token; at least float32.

    Each is conditioned on the image and the preceding tokens.
    inputs: "image" [batch, height, width, channels]; "target" [batch, time], the caption shifted
        right, which starts with the begin-of-sequence token.
    """
    return forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Logits, and the intermediates.

    The encoder's maps (see ``zoo.convnet.trace``), "annotations", "hidden", "readout", "logits",
    "outputs"; with attention, "attention" [batch, time, height, width], which sums to one over the
    locations of the last map.
    """
    return show(cfg, *forward(cfg, params, inputs, None))


def show(cfg: Config, logits: Array, seen: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The result of ``trace``, from that of ``forward``."""
    # A list, not a set: the order of a set of strings differs between processes.
    for name in [name for name in ("attention", "looked") if name in seen]:
        seen[name] = seen[name].reshape(*seen[name].shape[:2], *cfg.grid)
    return logits, seen | {"logits": logits, "outputs": jax.nn.softmax(logits)}


def encode(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> tuple[Memory, Carry]:
    """The encoded image of ``inputs``, and the decoder's initial carry."""
    memory, carry, _ = _encode(cfg, params, inputs, key)
    return memory, carry


def decode_step(
    cfg: Config, params: Params, carry: Carry, inputs: Array, memory: Memory
) -> tuple[Carry, Array]:
    """One token [rows] per caption: the carry after it, and the next token's logits.

    The logits are [rows, vocabulary]: see ``decoder.step``.
    """
    return decoder.step(cfg.writer, params, carry, inputs, memory)


def _encode(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Memory, Carry, dict[str, Array]]:
    stages_key, dropout_key = split_keys(key, 2)
    maps, intermediates = convnet.run_stages(
        cfg.encoder, params, inputs["image"], split_keys(stages_key, len(cfg.encoder.stages))
    )
    annotations = at_least_float32(maps.reshape(maps.shape[0], -1, maps.shape[-1]))
    if cfg.places:
        annotations = annotations + jnp.broadcast_to(
            params["places"]["embedding"][None], annotations.shape
        )
    annotations = intermediates["annotations"] = dropout(annotations, cfg.dropout, dropout_key)
    mask = jnp.ones(annotations.shape[:2], bool)
    return *decoder.start(
        cfg.writer, params, annotations, mask, jnp.mean(annotations, axis=1)
    ), intermediates


def forward(
    cfg: Config,
    params: Params,
    inputs: dict[str, Array],
    key: Array | None,
    choose: Choose | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Logits, and the intermediates of ``trace``.

    Here "attention" is [batch, time, locations].  choose: see ``zoo.parts.decoder``.
    """
    image_key, *keys = split_keys(key, 4)
    memory, carry, intermediates = _encode(cfg, params, inputs, image_key)
    logits, decoded = decoder.unroll(
        cfg.writer, params, memory, carry, inputs["target"], keys, choose
    )
    return logits, intermediates | decoded


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p of each target token, in nats, summed over unmasked ones.

    In training, labels are smoothed, and the coverage penalty is added.
    batch: inputs: see ``apply``; targets [batch, time] tokens; mask [batch, time], or [batch] if
        all captions are equally long.
    """
    batch, _ = blank_padding(batch)
    logits, intermediates = forward(cfg, params, batch["inputs"], key)
    total, aux = next_token_loss(
        logits, batch, carry, cfg.label_smoothing if key is not None else 0.0
    )
    if key is not None and cfg.coverage:
        total = total + cfg.coverage * jnp.sum(
            uncovered(intermediates["attention"], mask_of_steps(batch["mask"], logits.shape[:2]))
        )
    return total, aux


def uncovered(weights: Array, mask: Array) -> Array:
    """sum_i (1 - sum_t alpha_ti)^2 of each image [batch], over unmasked steps; 0 without any.

    weights [batch, time, locations]; mask [batch, time].
    """
    require_shape("mask", mask, weights.shape[:2])
    covered = jnp.sum(jnp.where(mask[:, :, None], weights, 0), axis=1)
    return jnp.where(jnp.any(mask, axis=1), jnp.sum(jnp.square(1 - covered), axis=1), 0)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Any:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Uniform images, and random captions with different lengths."""
    keys = jax.random.split(key, 3)
    target = jax.random.randint(keys[0], (batch_size, EXAMPLE_TARGET + 1), 0, cfg.vocabulary)
    lengths = jax.random.randint(keys[1], (batch_size, 1), EXAMPLE_TARGET // 2, EXAMPLE_TARGET + 1)
    image = jax.random.uniform(keys[2], (batch_size, *cfg.encoder.shape))
    mask = jnp.arange(EXAMPLE_TARGET)[None] < lengths
    return {
        "inputs": {"image": image, "target": target[:, :-1]},
        "targets": target[:, 1:],
        "mask": mask,
    }
