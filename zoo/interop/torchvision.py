"""AlexNet and VGG weights in torchvision's layout, to and from ``zoo.convnet``.

    from zoo import convnet
    from zoo.interop import torchvision

    cfg = convnet.PRESETS["vgg16"]
    params = torchvision.load_torchvision("vgg16-397923af.pth", cfg)
    torchvision.save_torchvision("vgg16.safetensors", params, cfg)

torchvision's images are [channels, height, width].  Its networks consist of two sequences,
``features`` (convolution, ReLU, optional pooling) and ``classifier`` (linear, ReLU, dropout); a
name such as "features.3.weight" contains the layer's position in its sequence.
torch is needed only to read torch's own files, torchvision never.
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
"""Suffixes of torch's own files; all others are safetensors files."""


class _Layer(NamedTuple):
    """One layer with its names in the zoo (ours) and torchvision (theirs).

    sizes: height, width, input channels and output channels of its kernel.  For the first dense
    layer, height and width are those of the feature maps, which the two libraries flatten in
    different orders.
    """

    ours: str
    theirs: str
    sizes: tuple[int, ...]

    def weight(self, kernel: Any) -> Any:
        """The zoo's kernel in torchvision's layout.

        [height, width, in, out] -> [out, in, height, width], or
        [height * width * in, out] -> [out, in * height * width].
        """
        weight = kernel.reshape(self.sizes).transpose(3, 2, 0, 1)
        return weight if kernel.ndim == 4 else weight.reshape(weight.shape[0], -1)

    def kernel(self, weight: Any) -> Any:
        """The inverse of ``weight``."""
        height, width, inputs, outputs = self.sizes
        kernel = weight.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
        return kernel if weight.ndim == 4 else kernel.reshape(-1, outputs)


def _layers(where: str, cfg: Any) -> list[_Layer]:
    """The layers of a ConvNet.

    Raises ValueError for another model's Config and for inputs other than images.
    """
    if not isinstance(cfg, convnet.Config):
        raise ValueError(
            f"{where}: torchvision's weights and {type(cfg).__module__}.Config, "
            "allowed: zoo.convnet.Config"
        )
    if len(cfg.shape) != 3:
        raise ValueError(
            f"{where}: torchvision's weights and shape={cfg.shape!r}, "
            "allowed: (height, width, channels)"
        )
    sizes = {name: layer["kernel"].shape for name, layer in shapes_of(convnet.init, cfg).items()}
    layers, place = [], 0
    for index, stage in enumerate(cfg.stages):
        layers.append(_Layer(f"conv_{index}", f"features.{place}", sizes[f"conv_{index}"]))
        place += 3 if stage.pool else 2
    # AlexNet has dropout before its linear layers, VGG after them.  VGG's kernels are all 3x3.
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
    """Parameters as torchvision's state dict, with unchanged types.

    Weights are [out, in, height, width] or [out, in], biases [out].
    Raises ValueError for an unsupported Config, and one naming every parameter that is missing,
    unknown or misshapen.
    """
    layers = _layers("params", cfg)
    require_fit("params", params, shapes_of(convnet.init, cfg), dtypes=False)
    tensors = _renamed(layers, jax.tree.map(np.asarray, params))
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_torchvision(cfg: Any, tensors: Mapping[str, Any], *, strict: bool = True) -> Params:
    """A torchvision state dict (NumPy or torch) as parameters of ``convnet.init``'s types.

    strict: if False, layers of another shape are left out, provided that at least one layer fits
    and that all convolutions of the network have the same positions; the state dict may have more
    after them.  Some classifier layers may be missing; with an unknown one, the whole classifier is
    left out.
    Raises ValueError for an unsupported Config, for batch normalisation, and one naming every
    tensor that is missing, unknown or misshapen.
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
    """The layers that fit the arrays; none unless all convolutions have the same positions.

    Shapes alone are not enough, because many layers of a VGG have the same shape.
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
    """Writes the result of ``to_torchvision`` to a safetensors file.

    Raises the errors of ``to_torchvision``, and ValueError for types that a file cannot hold.
    """
    save_safetensors(path, unflatten_dict(to_torchvision(cfg, params), sep="."))


def load_torchvision(path: str | PathLike[str], cfg: Any, *, strict: bool = True) -> Params:
    """Reads torchvision's weights from a safetensors or torch file (``TORCH_FILES``).

    strict: see ``from_torchvision``.
    Raises ValueError naming the file and the problem, or if torch is needed but not installed;
    FileNotFoundError.
    """
    if _is_torch(path):
        return _from_tensors(str(path), cfg, _load_torch(path), strict)
    # Checked first, because num_batches_tracked of batch normalisation is int64, which JAX cannot
    # hold by default.
    with open_safetensors(path) as file:
        _require_no_normalisation(str(path), file.keys())
    return _from_tensors(str(path), cfg, flatten_dict(load_safetensors(path), sep="."), strict)


def is_torchvision(path: str | PathLike[str]) -> bool:
    """Whether a file is a torch file, or a safetensors file with torch's names.

    torch has "weight" where the zoo has "kernel".
    Raises ValueError naming the file if it is neither a torch nor a safetensors file;
    FileNotFoundError.
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
        except Exception as error:  # any error in an untrusted file
            # Only the type: torch's message advises to load the file unsafely.
            reason = type(error).__name__
            raise ValueError(
                f"{path}: not a torch file with a state dict and nothing else ({reason})"
            ) from error
