"""Weights in torchvision's layout of AlexNet and VGG, for the Configs of ``zoo.convnet`` with the same kind of network.

    from zoo import convnet
    from zoo.interop import torchvision

    cfg = convnet.PRESETS["vgg16"]
    params = torchvision.load_torchvision("vgg16-397923af.pth", cfg)
    torchvision.save_torchvision("vgg16.safetensors", params, cfg)

torchvision's images are [channels, height, width], its networks ``features`` (convolution, ReLU, pooling where there is one) and
``classifier`` (linear layers, ReLU, dropout): a name holds a layer's place in one of these sequences, "features.3.weight".
Neither torch nor torchvision is needed, but for reading torch's own files.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from os import PathLike, fspath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from zoo import convnet
from zoo.base import Params
from zoo.interop.files import load_safetensors, open_safetensors, save_safetensors
from zoo.interop.shapes import require_fit, shapes_of

TORCH_FILES = (".pth", ".pt")
"""How the names of torch's own files end; others are safetensors files."""


class _Layer(NamedTuple):
    """One layer by the zoo's name and torchvision's.  sizes: height, width, channels in and out of its kernel.

    Behind the convolutions, height and width are those of the feature maps, which the two flatten in another order.
    """

    ours: str
    theirs: str
    sizes: tuple[int, ...]

    def weight(self, kernel: Any) -> Any:
        """Kernel [height, width, in, out] or [height * width * in, out] -> [out, in, height, width] or [out, in * ...]."""
        weight = kernel.reshape(self.sizes).transpose(3, 2, 0, 1)
        return weight if kernel.ndim == 4 else weight.reshape(weight.shape[0], -1)

    def kernel(self, weight: Any) -> Any:
        """The inverse of ``weight``."""
        height, width, inputs, outputs = self.sizes
        kernel = weight.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
        return kernel if weight.ndim == 4 else kernel.reshape(-1, outputs)


def _layers(where: str, cfg: Any) -> list[_Layer]:
    """Raises ValueError for another model's Config and for inputs that are no images."""
    if not isinstance(cfg, convnet.Config):
        raise ValueError(
            f"{where}: torchvision's weights and {type(cfg).__module__}.Config, allowed: zoo.convnet.Config"
        )
    if len(cfg.shape) != 3:
        raise ValueError(
            f"{where}: torchvision's weights and shape={cfg.shape!r}, allowed: (height, width, channels)"
        )
    sizes = {name: layer["kernel"].shape for name, layer in shapes_of(convnet.init, cfg).items()}
    layers, place = [], 0
    for index, stage in enumerate(cfg.stages):
        layers.append(_Layer(f"conv_{index}", f"features.{place}", sizes[f"conv_{index}"]))
        place += 3 if stage.pool else 2
    # Dropout comes before the linear layers in AlexNet, and behind them in VGG, whose kernels are all 3x3.
    first = 0 if all(set(stage.kernel) == {3} for stage in cfg.stages) else 1
    space = (1, 1) if cfg.global_pool else cfg.spaces()[-1]
    for index in range(len(cfg.dense) + 1):
        inputs, outputs = sizes[f"dense_{index}"]
        place = 3 * index + (first if index < len(cfg.dense) else 0)
        layers.append(
            _Layer(
                f"dense_{index}",
                f"classifier.{place}",
                (*space, inputs // math.prod(space), outputs),
            )
        )
        space = (1, 1)
    return layers


def _renamed(layers: list[_Layer], params: Params) -> dict[str, Any]:
    tensors = {}
    for layer in layers:
        tensors[f"{layer.theirs}.weight"] = layer.weight(params[layer.ours]["kernel"])
        tensors[f"{layer.theirs}.bias"] = params[layer.ours]["bias"]
    return tensors


def to_torchvision(cfg: Any, params: Params) -> dict[str, np.ndarray]:
    """Parameters as torchvision's state dict: weights [out, in, height, width] or [out, in], biases [out], of the same types.

    Raises ValueError for a Config without such a network, and naming every parameter that is missing, unknown or misshapen.
    """
    layers = _layers("params", cfg)
    require_fit("params", params, shapes_of(convnet.init, cfg), dtypes=False)
    tensors = _renamed(layers, jax.tree.map(np.asarray, params))
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_torchvision(cfg: Any, tensors: Mapping[str, Any], *, strict: bool = True) -> Params:
    """torchvision's state dict (of numpy or torch) as parameters of the types that ``convnet.init`` draws.

    strict: False leaves out layers of another shape, as long as one fits and all convolutions have the same places; others may
    follow them.  Of the layers behind the convolutions some may be missing; where others are there, all are left out.
    Raises ValueError for a Config without such a network, for batch normalisation, and naming every tensor that is missing,
    unknown or misshapen.
    """
    return _from_tensors("tensors", cfg, tensors, strict)


def _from_tensors(where: str, cfg: Any, tensors: Mapping[str, Any], strict: bool) -> Params:
    layers, shapes = _layers(where, cfg), shapes_of(convnet.init, cfg)
    expected = jax.eval_shape(partial(_renamed, layers), shapes)
    _require_no_normalisation(where, tensors)
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    fitting = _fitting(layers, arrays, expected)
    if strict or not fitting:
        require_fit(where, arrays, expected, dtypes=False)
    params: Params = {}
    for layer in fitting:
        weight, bias = (arrays[f"{layer.theirs}.{leaf}"] for leaf in ("weight", "bias"))
        leaves = {"kernel": layer.kernel(weight), "bias": bias}
        params[layer.ours] = {
            name: jnp.asarray(leaf, shapes[layer.ours][name].dtype) for name, leaf in leaves.items()
        }
    return params


def _fitting(
    layers: list[_Layer], arrays: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[_Layer]:
    """The layers that the arrays hold; none unless all convolutions of the network have the same places.

    That a shape fits says little: in a VGG many layers have the same.
    """
    features = {name for name in expected if name.startswith("features.")}
    last = max(int(name.split(".")[1]) for name in features)
    places = {name: re.fullmatch(r"features\.(\d+)\.(weight|bias)", name) for name in arrays}
    following = {name for name, place in places.items() if place and int(place[1]) > last}
    classifier = {name for name in arrays if name.startswith("classifier.")}
    if arrays.keys() - following - classifier != features:
        return []
    known = features | (classifier if classifier <= expected.keys() else set())

    def fits(name: str) -> bool:
        return name in known and arrays[name].shape == expected[name].shape

    return [
        layer for layer in layers if fits(f"{layer.theirs}.weight") and fits(f"{layer.theirs}.bias")
    ]


def _require_no_normalisation(where: str, names: Iterable[str]) -> None:
    if found := next((name for name in names if name.endswith("running_mean")), None):
        raise ValueError(
            f"{where}: {found} is of batch normalisation, which the model does not have"
        )


def save_torchvision(path: str | PathLike[str], params: Params, cfg: Any) -> None:
    """Writes ``to_torchvision`` to a safetensors file.  Raises ValueError like it, and for types that it cannot hold."""
    save_safetensors(path, unflatten_dict(to_torchvision(cfg, params), sep="."))


def load_torchvision(path: str | PathLike[str], cfg: Any, *, strict: bool = True) -> Params:
    """Reads torchvision's weights from a safetensors file, or from torch's own (``TORCH_FILES``), by ``from_torchvision``.

    Raises ValueError naming the file and what is wrong with it, or that torch must be installed; FileNotFoundError.
    """
    if _is_torch(path):
        return _from_tensors(str(path), cfg, _load_torch(path), strict)
    with open_safetensors(
        path
    ) as file:  # before its numbers of batches are read, which are integers of 64 bits
        _require_no_normalisation(str(path), file.keys())
    return _from_tensors(str(path), cfg, flatten_dict(load_safetensors(path), sep="."), strict)


def is_torchvision(path: str | PathLike[str]) -> bool:
    """Whether a file is torch's own, or a safetensors file with names as torch has them ("weight", where the zoo has "kernel").

    Raises ValueError naming the file if it is neither of them; FileNotFoundError.
    """
    if _is_torch(path):
        return True
    with open_safetensors(path) as file:
        return any(name.endswith(".weight") for name in file.keys())  # noqa: SIM118 -- not a dict


def _is_torch(path: str | PathLike[str]) -> bool:
    return fspath(path).lower().endswith(TORCH_FILES)


def _load_torch(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{path}: torch's own files need torch: pip install 'purezoo[torch]'"
        ) from None
    with open(path, "rb") as file:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            # numpy has no bfloat16; parameters are float32 anyway.
            return {name: tensor.to(torch.float32).numpy() for name, tensor in tensors.items()}
        except Exception as error:  # whatever is wrong with a file from outside; torch's advice is to read it unsafely
            reason = type(error).__name__
            raise ValueError(
                f"{path}: not a torch file with a state dict and nothing else ({reason})"
            ) from error
