"""Weights in torchvision's layout of AlexNet and VGG, for the Configs of ``zoo.convnet`` with the same kind of network.

    from zoo import convnet, torchvision

    cfg = convnet.PRESETS["vgg16"]
    params = torchvision.load_torchvision("vgg16-397923af.pth", cfg)
    torchvision.save_torchvision("vgg16.safetensors", params, cfg)

torchvision's images are [channels, height, width], its networks ``features`` (convolution, ReLU, pooling where there is one) and
``classifier`` (linear layers, ReLU, dropout): a name holds a layer's place in one of these sequences, "features.3.weight".
Neither torch nor torchvision is needed, but for reading torch's own files.
"""

import math
from collections.abc import Mapping
from functools import partial
from os import PathLike, fspath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from zoo import convnet
from zoo.base import Params
from zoo.interop import load_safetensors, open_safetensors, require_fit, save_safetensors, shapes_of

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
        raise ValueError(f"{where}: torchvision's weights and {type(cfg).__module__}.Config, allowed: zoo.convnet.Config")
    if len(cfg.shape) != 3:
        raise ValueError(f"{where}: torchvision's weights and shape={cfg.shape!r}, allowed: (height, width, channels)")
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
        layers.append(_Layer(f"dense_{index}", f"classifier.{place}", (*space, inputs // math.prod(space), outputs)))
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

    strict: False leaves out the parameters whose tensor is missing or misshapen, as long as there are others.
    Raises ValueError for a Config without such a network, and naming every tensor that is missing, unknown or misshapen.
    """
    return _from_tensors("tensors", cfg, tensors, strict)


def _from_tensors(where: str, cfg: Any, tensors: Mapping[str, Any], strict: bool) -> Params:
    layers, shapes = _layers(where, cfg), shapes_of(convnet.init, cfg)
    expected = jax.eval_shape(partial(_renamed, layers), shapes)
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    fitting = {name: array for name, array in arrays.items() if name in expected and array.shape == expected[name].shape}
    if strict or not fitting:
        require_fit(where, arrays, expected, dtypes=False)
    params: Params = {}
    for layer in layers:
        for ours, theirs, convert in (("kernel", "weight", layer.kernel), ("bias", "bias", np.asarray)):
            if (array := fitting.get(f"{layer.theirs}.{theirs}")) is not None:
                leaf = jnp.asarray(convert(array), shapes[layer.ours][ours].dtype)
                params.setdefault(layer.ours, {})[ours] = leaf
    return params


def save_torchvision(path: str | PathLike[str], params: Params, cfg: Any) -> None:
    """Writes ``to_torchvision`` to a safetensors file.  Raises ValueError like it, and for types that it cannot hold."""
    save_safetensors(path, unflatten_dict(to_torchvision(cfg, params), sep="."))


def load_torchvision(path: str | PathLike[str], cfg: Any, *, strict: bool = True) -> Params:
    """Reads torchvision's weights from a safetensors file, or from torch's own (``TORCH_FILES``), by ``from_torchvision``.

    Raises ValueError naming the file and what is wrong with it, or that torch must be installed; FileNotFoundError.
    """
    tensors = _load_torch(path) if fspath(path).endswith(TORCH_FILES) else flatten_dict(load_safetensors(path), sep=".")
    return _from_tensors(str(path), cfg, tensors, strict)


def is_torchvision(path: str | PathLike[str]) -> bool:
    """Whether a file is torch's own, or a safetensors file with torchvision's names.

    Raises ValueError naming the file if it is neither of them; FileNotFoundError.
    """
    if fspath(path).endswith(TORCH_FILES):
        return True
    with open_safetensors(path) as file:
        return any(name.startswith(("features.", "classifier.")) for name in file.keys())  # noqa: SIM118 -- not a dict


def _load_torch(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{path}: torch's own files need torch: pip install 'purezoo[torch]'") from None
    with open(path, "rb") as file:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            # numpy has no bfloat16; parameters are float32 anyway.
            return {name: tensor.to(torch.float32).numpy() for name, tensor in tensors.items()}
        except Exception as error:  # whatever is wrong with a file from outside; torch's advice is to read it unsafely
            reason = type(error).__name__
            raise ValueError(f"{path}: not a torch file with a state dict and nothing else ({reason})") from error
