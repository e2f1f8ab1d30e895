"""Captions: an image becomes a sentence (review, figure 3).

After "Show and Tell" (Vinyals et al. 2014) and "Show, Attend and Tell" (Xu et al. 2015).

The convolutional stages of a ``zoo.convnet`` say something of each place of the image: annotations a_1 ... a_L, the cells of
their last map, in rows from the top.  ``zoo.parts.decoder`` writes the sentence, its first state from the mean annotation:

attention "none"    the mean annotation is all that it sees                                    Vinyals et al. 2014
          "soft"    before each word it looks at a weighted mean of all places, and a gate     Xu et al. 2015, section 4.2,
                    says how much of it it needs                                               equations 13 and 4.2.1's beta

``zoo.hard_captioner`` looks at one place instead.  While training, soft attention is pressed to look at each place about once in
all, by lambda sum_i (1 - sum_t alpha_ti)^2 for each image (equation 14).
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
"""Tokens of an example; a model takes any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A captioner.

    encoder: the network whose stages see the image; its dense layers are not there.
    vocabulary: number of tokens; training sets it to that of the captions.
    features: numbers of a token's vector, and of what the softmax reads.
    units: of the recurrent decoder.  cell: lstm or gru.
    attention: see the module.
    places: learned vectors, one for each place, are added to the annotations, which then say where they are.
    coverage: lambda, the weight of looking everywhere once; 0 without attention.
    dropout: probability that a number is dropped while training: of annotations, token vectors and what the softmax reads.
    label_smoothing: while training, the probability that a target is any token instead.
    forget_bias: of an LSTM.  compute_dtype: see ``zoo.convnet``; that of the encoder is its own.
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
        """What inputs must lie in: the tokens."""
        return {"target": (0.0, self.vocabulary - 1.0)}

    @property
    def outputs(self) -> Outputs:
        """What the outputs are, and the loss."""
        return Outputs("targets", Targets(self.vocabulary), likelihood=True)

    @property
    def grid(self) -> tuple[int, int]:
        """Places in height and width."""
        height, width = self.encoder.spaces()[-1]
        return height, width

    @property
    def writer(self) -> decoder.Config:
        """The decoder, which writes the caption."""
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
    """Raises ValueError unless the field "encoder" of a Config is a ``zoo.convnet.Config`` of images."""
    valid = isinstance(encoder, convnet.Config) and len(encoder.shape) == 3
    require(valid, cfg, "encoder", "a zoo.convnet.Config of images [height, width, channels]")


_stage = convnet.Stage
# A place sees about what one digit covers, so that it takes attention to see several.
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
    # Some hundreds of kinds of things, in colours.
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
    """{"conv_0": see ``zoo.convnet.init``, ..., "places": {"embedding" [places, features]}, ...: see ``zoo.parts.decoder.init``}.

    So that weights of a ConvNet, or torchvision's, initialise the stages (``zoo.parts.parameters.restore_matching``).
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
    """Logits [batch, time, vocabulary] of each token given the image and the tokens before it; at least float32.

    inputs: "image" [batch, height, width, channels]; "target" [batch, time]: the tokens before, of which the first is the one
    that every caption begins with.
    """
    return forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Logits, the encoder's maps (see ``zoo.convnet.trace``), "annotations", "hidden", "readout", "logits", "outputs".

    With attention "attention" [batch, time, height, width] over the places of the last map; it sums to one.
    """
    return show(cfg, *forward(cfg, params, inputs, None))


def show(cfg: Config, logits: Array, seen: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """What ``trace`` returns, from what ``forward`` does."""
    for name in [
        name for name in ("attention", "looked") if name in seen
    ]:  # a set's order is another in each process
        seen[name] = seen[name].reshape(*seen[name].shape[:2], *cfg.grid)
    return logits, seen | {"logits": logits, "outputs": jax.nn.softmax(logits)}


def encode(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> tuple[Memory, Carry]:
    """What is known of the image of ``inputs``, and the decoder's carry before its first step."""
    memory, carry, _ = _encode(cfg, params, inputs, key)
    return memory, carry


def decode_step(
    cfg: Config, params: Params, carry: Carry, inputs: Array, memory: Memory
) -> tuple[Carry, Array]:
    """One token [rows] of each caption: the carry after it, and logits of the next [rows, vocabulary]: see ``decoder.step``."""
    return decoder.step(cfg.writer, params, carry, inputs, memory)


def _encode(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Memory, Carry, dict[str, Array]]:
    stages_key, dropout_key = split_keys(key, 2)
    maps, seen = convnet.run_stages(
        cfg.encoder, params, inputs["image"], split_keys(stages_key, len(cfg.encoder.stages))
    )
    annotations = at_least_float32(maps.reshape(maps.shape[0], -1, maps.shape[-1]))
    if cfg.places:
        annotations = annotations + jnp.broadcast_to(
            params["places"]["embedding"][None], annotations.shape
        )
    annotations = seen["annotations"] = dropout(annotations, cfg.dropout, dropout_key)
    mask = jnp.ones(annotations.shape[:2], bool)
    return *decoder.start(
        cfg.writer, params, annotations, mask, jnp.mean(annotations, axis=1)
    ), seen


def forward(
    cfg: Config,
    params: Params,
    inputs: dict[str, Array],
    key: Array | None,
    choose: Choose | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Logits, and what ``trace`` names, "attention" [batch, time, places].  choose: see ``zoo.parts.decoder``."""
    image_key, *keys = split_keys(key, 4)
    memory, carry, seen = _encode(cfg, params, inputs, image_key)
    logits, more = decoder.unroll(cfg.writer, params, memory, carry, inputs["target"], keys, choose)
    return logits, seen | more


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p of each target token, in nats, summed over unmasked ones; while training also what the Config's coverage asks.

    batch: inputs: see ``apply``; targets [batch, time] tokens; mask [batch, time], or [batch] where all are equally long.
    """
    batch, _ = blank_padding(batch)
    logits, seen = forward(cfg, params, batch["inputs"], key)
    total, aux = next_token_loss(
        logits, batch, carry, cfg.label_smoothing if key is not None else 0.0
    )
    if key is not None and cfg.coverage:
        total = total + cfg.coverage * jnp.sum(
            uncovered(seen["attention"], mask_of_steps(batch["mask"], logits.shape[:2]))
        )
    return total, aux


def uncovered(weights: Array, mask: Array) -> Array:
    """sum_i (1 - sum_t alpha_ti)^2 of each image [batch], over unmasked steps; 0 where there are none.

    weights [batch, time, places]; mask [batch, time].
    """
    require_shape("mask", mask, weights.shape[:2])
    looked = jnp.sum(jnp.where(mask[:, :, None], weights, 0), axis=1)
    return jnp.where(jnp.any(mask, axis=1), jnp.sum(jnp.square(1 - looked), axis=1), 0)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Any:
    """Nothing."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Uniform images, and random captions of different lengths."""
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
