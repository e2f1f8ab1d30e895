"""Weights in torchvision's layout, against torch networks built like torchvision's."""

import dataclasses
import re
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from train.engine.checkpoint import describe
from train.transfer import load_params
from zoo import MODELS, convnet
from zoo.convnet import Stage
from zoo.interop import torchvision

ALEXNET = dataclasses.replace(
    convnet.PRESETS["alexnet"],
    shape=(63, 79, 3),  # feature maps of 1x2 after the last pooling: their order shows
    stages=tuple(
        dataclasses.replace(stage, features=features)
        for stage, features in zip(convnet.PRESETS["alexnet"].stages, (4, 6, 8, 5, 7), strict=True)
    ),
    dense=(11, 9),
    classes=5,
)
VGG = dataclasses.replace(
    convnet.PRESETS["vgg16"],
    shape=(8, 12, 3),
    stages=(Stage(features=4), Stage(features=6, pool="max"), Stage(features=5, pool="max")),
    dense=(10, 8),
    classes=7,
)
ALEXNET_NAMES = [
    *(f"features.{place}" for place in (0, 3, 6, 8, 10)),
    *(f"classifier.{place}" for place in (1, 4, 6)),
]
VGG_NAMES = [
    *(f"features.{place}" for place in (0, 2, 5)),
    *(f"classifier.{place}" for place in (0, 3, 6)),
]
NAMES = [
    pytest.param(ALEXNET, ALEXNET_NAMES, id="alexnet"),
    pytest.param(VGG, VGG_NAMES, id="vgg"),
    pytest.param(
        dataclasses.replace(VGG, dense=()), [*VGG_NAMES[:3], "classifier.0"], id="no hidden layer"
    ),
    pytest.param(dataclasses.replace(ALEXNET, global_pool="mean"), ALEXNET_NAMES, id="pooled"),
]


def _zeros(cfg):
    """Zero parameters that share memory, because drawing them takes long."""
    shapes = jax.eval_shape(lambda: convnet.init(cfg, jax.random.key(0)))
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)


def _tensors(cfg) -> dict[str, Any]:
    """Random tensors, biases too, by torchvision's names."""
    rng = np.random.default_rng(0)
    tensors = torchvision.to_torchvision(cfg, _zeros(cfg))
    return {
        name: rng.normal(size=tensor.shape).astype(np.float32) / 8
        for name, tensor in tensors.items()
    }


def _network(cfg, torch, dropout_first):
    """torchvision.models.alexnet.AlexNet (dropout first) and vgg.VGG, of other sizes."""
    nn = torch.nn
    features, channels = [], cfg.shape[-1]
    for stage in cfg.stages:
        padding = int(stage.padding) if stage.padding.isdecimal() else 1
        features.append(
            nn.Conv2d(
                channels, stage.features, stage.kernel[0], stride=stage.stride[0], padding=padding
            )
        )
        features.append(nn.ReLU(inplace=True))
        if stage.pool:
            features.append(
                nn.MaxPool2d(stage.pool_size[0], stride=(stage.pool_stride or stage.pool_size)[0])
            )
        channels = stage.features
    (height, width), (first, second) = cfg.spaces()[-1], cfg.dense
    classifier = [nn.Linear(channels * height * width, first), nn.ReLU(True), nn.Dropout()]
    classifier += [
        nn.Linear(first, second),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(second, cfg.classes),
    ]
    if dropout_first:
        linear_1, relu_1, drop_1, linear_2, relu_2, drop_2, linear_3 = classifier
        classifier = [drop_1, linear_1, relu_1, drop_2, linear_2, relu_2, linear_3]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*features)
            self.avgpool = nn.AdaptiveAvgPool2d((height, width))
            self.classifier = nn.Sequential(*classifier)

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    torch.manual_seed(0)
    return Network().eval()


def _logits(network, torch, inputs):
    with torch.no_grad():
        return network(torch.tensor(np.moveaxis(inputs, -1, 1).copy())).numpy()


def _assert_agree(cfg, network, torch, batch):
    inputs = np.random.default_rng(1).normal(size=(batch, *cfg.shape)).astype(np.float32)
    expected = _logits(network, torch, inputs)
    params = torchvision.from_torchvision(cfg, network.state_dict())
    actual = jax.jit(convnet.apply)(cfg, params, jnp.asarray(inputs))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    back = torchvision.to_torchvision(cfg, params)
    assert back.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor)
    network.load_state_dict(
        {name: torch.tensor(array) + 1 for name, array in back.items()}
    )  # that it loads them at all


@pytest.mark.parametrize(
    ("cfg", "dropout_first"), [(ALEXNET, True), (VGG, False)], ids=["alexnet", "vgg"]
)
def test_logits_equal_those_of_a_torch_network(cfg, dropout_first):
    torch = pytest.importorskip("torch")
    _assert_agree(cfg, _network(cfg, torch, dropout_first), torch, batch=3)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "vgg19"])
def test_logits_equal_those_of_torchvisions_own_network(name):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    _assert_agree(convnet.PRESETS[name], getattr(models, name)().eval(), torch, batch=1)


@pytest.mark.parametrize(("cfg", "names"), NAMES)
def test_names_and_exact_round_trips(cfg, names):
    tensors = _tensors(cfg)
    assert list(tensors) == [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]
    params = torchvision.from_torchvision(cfg, tensors)
    assert describe(params) == describe(_zeros(cfg))
    back = torchvision.to_torchvision(cfg, params)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].flags.c_contiguous


@pytest.mark.parametrize("preset", ["alexnet", "vgg16", "vgg19"])
def test_presets_have_torchvisions_shapes(preset, monkeypatch):
    """As printed by torchvision, without drawing a hundred million numbers."""
    cfg = convnet.PRESETS[preset]
    monkeypatch.setattr(np, "ascontiguousarray", lambda array: array)
    shapes = {
        name: tensor.shape for name, tensor in torchvision.to_torchvision(cfg, _zeros(cfg)).items()
    }
    last = {"alexnet": "features.10", "vgg16": "features.28", "vgg19": "features.34"}[preset]
    assert [name for name in shapes if name.startswith("features")][-1] == f"{last}.bias"
    first = "classifier.1" if preset == "alexnet" else "classifier.0"
    assert shapes[f"{first}.weight"] == (4096, 9216 if preset == "alexnet" else 25088)
    assert shapes["classifier.6.weight"] == (1000, 4096)
    parameters = {"alexnet": 61_100_840, "vgg16": 138_357_544, "vgg19": 143_667_240}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters[preset]


def test_weight_layout_equals_torch():
    tensors = _tensors(VGG)
    params = torchvision.from_torchvision(VGG, tensors)
    assert params["conv_1"]["kernel"][0, 2, 3, 5] == tensors["features.2.weight"][5, 3, 0, 2]
    row, column, channel, unit = 1, 2, 3, 4  # of feature maps [2, 3, 5]
    assert (
        params["dense_0"]["kernel"][(row * 3 + column) * 5 + channel, unit]
        == (tensors["classifier.0.weight"][unit, (channel * 2 + row) * 3 + column])
    )
    assert params["dense_1"]["kernel"][3, 2] == tensors["classifier.3.weight"][2, 3]


def test_every_fault_is_named():
    tensors = _tensors(VGG)
    del tensors["features.2.bias"]
    tensors["features.3.weight"] = np.ones(4, np.float32)
    tensors["classifier.6.bias"] = np.ones(1000, np.float32)
    message = (
        "tensors: features.2.bias is missing; features.3.weight is unknown; classifier.6.bias has "
        "shape (1000,), expected (7,)"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        torchvision.from_torchvision(VGG, tensors)
    params = _zeros(VGG)
    params["dense_2"] = {"bias": params["dense_2"]["bias"]}
    with pytest.raises(ValueError, match=r"^params: dense_2\.kernel is missing$"):
        torchvision.to_torchvision(VGG, params)


def test_non_strict_loading_skips_mismatches():
    params = torchvision.from_torchvision(
        dataclasses.replace(VGG, classes=3), _tensors(VGG), strict=False
    )
    whole = torchvision.from_torchvision(VGG, _tensors(VGG))
    del whole["dense_2"]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, whole))
    with pytest.raises(
        ValueError, match=r"^tensors: .*features\.0\.weight is missing; fc\.weight is unknown$"
    ):
        torchvision.from_torchvision(
            dataclasses.replace(VGG, stages=(VGG.stages[0],), dense=()),
            {"fc.weight": np.ones(2)},
            strict=False,
        )


def _normalised(cfg) -> dict[str, np.ndarray]:
    """torchvision's ``vgg_bn``: normalisation follows each convolution, which shifts indices."""
    tensors, place, channels = {}, 0, cfg.shape[-1]
    for stage in cfg.stages:
        tensors[f"features.{place}.weight"] = np.ones((stage.features, channels, 3, 3), np.float32)
        tensors[f"features.{place}.bias"] = np.ones(stage.features, np.float32)
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"features.{place + 1}.{name}"] = np.ones(stage.features, np.float32)
        tensors[f"features.{place + 1}.num_batches_tracked"] = np.array(5)
        place, channels = place + (4 if stage.pool else 3), stage.features
    return tensors | {
        name: tensor for name, tensor in _tensors(cfg).items() if name.startswith("classifier")
    }


RESNET = {
    "conv1.weight": np.ones((4, 3, 7, 7), np.float32),
    "layer1.0.conv1.weight": np.ones((4, 4, 3, 3), np.float32),
    "fc.weight": np.ones((7, 8), np.float32),
    "fc.bias": np.ones(7, np.float32),
}
DEEPER = dataclasses.replace(VGG, stages=(VGG.stages[0], *VGG.stages))
OTHERS = {
    "vgg_bn": (
        VGG,
        _normalised(VGG),
        r"features\.1\.running_mean is of batch normalisation, which the model does not have$",
    ),
    "alexnet for vgg": (VGG, _tensors(ALEXNET), r"features\.2\.weight is missing"),
    "deeper": (VGG, _tensors(DEEPER), r"features\.4\.weight is unknown"),
    "less deep": (DEEPER, _tensors(VGG), r"features\.4\.weight is missing"),
    "resnet": (VGG, RESNET, r"features\.0\.weight is missing; .*"),
    "resnet with normalisation": (
        VGG,
        RESNET | {"bn1.running_mean": np.ones(4)},
        "bn1.running_mean is of batch normalisation",
    ),
    "of another width": (
        VGG,
        _tensors(
            dataclasses.replace(
                VGG,
                stages=tuple(
                    dataclasses.replace(stage, features=stage.features + 1) for stage in VGG.stages
                ),
                dense=(11, 9),
                classes=8,
            )
        ),
        r"features\.0\.weight has shape \(5, 3, 3, 3\), expected \(4, 3, 3, 3\)",
    ),
}


@pytest.mark.parametrize(("cfg", "tensors", "message"), OTHERS.values(), ids=OTHERS)
def test_weights_of_another_network_are_refused_by_name(cfg, tensors, message, tmp_path):
    """Even if some of their shapes would fit."""
    with pytest.raises(ValueError, match=f"^tensors: .*{message}"):
        torchvision.from_torchvision(cfg, tensors, strict=False)
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        load_params(path, cfg)


def test_layers_are_matched_as_a_whole():
    tensors = _tensors(VGG)
    grey = torchvision.from_torchvision(
        dataclasses.replace(VGG, shape=(8, 12, 1)), tensors, strict=False
    )
    assert list(grey) == ["conv_1", "conv_2", "dense_0", "dense_1", "dense_2"], (
        "conv_0 has a bias that fits"
    )
    del tensors["classifier.3.bias"]
    assert "dense_1" not in torchvision.from_torchvision(VGG, tensors, strict=False)


def test_matching_stops_at_the_first_different_layer():
    begun = dataclasses.replace(VGG, stages=VGG.stages[:2], dense=(10,), classes=8)
    tensors = _tensors(VGG)
    params = torchvision.from_torchvision(begun, tensors, strict=False)
    assert list(params) == ["conv_0", "conv_1"]
    np.testing.assert_array_equal(params["conv_1"]["bias"], tensors["features.2.bias"])


def test_file_endings_are_case_insensitive(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("vgg.PTH", "vgg.Pt"):
        assert torchvision.is_torchvision(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: torch's own files need torch"):
            torchvision.load_torchvision(tmp_path / name, VGG)
    torchvision.save_torchvision(
        tmp_path / "vgg.SAFETENSORS", torchvision.from_torchvision(VGG, _tensors(VGG)), VGG
    )
    assert load_params(tmp_path / "vgg.SAFETENSORS", VGG).keys() == _zeros(VGG).keys()


@pytest.mark.parametrize("preset", ["tdnn", "conv3d"])
def test_other_networks_are_refused(preset):
    with pytest.raises(
        ValueError,
        match=r"^tensors: torchvision's weights and shape=.*, allowed: \(height, width, "
        r"channels\)$",
    ):
        torchvision.from_torchvision(convnet.PRESETS[preset], {})
    with pytest.raises(
        ValueError,
        match=r"^params: torchvision's weights and zoo\.mlp\.Config, allowed: "
        r"zoo\.convnet\.Config$",
    ):
        torchvision.to_torchvision(MODELS["mlp"].PRESETS["tiny"], {})


# files


def test_safetensors_files(tmp_path):
    tensors, path = _tensors(ALEXNET), tmp_path / "alexnet.safetensors"
    params = torchvision.from_torchvision(ALEXNET, tensors)
    torchvision.save_torchvision(path, params, ALEXNET)
    written = safetensors.numpy.load_file(path)
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
    assert torchvision.is_torchvision(path)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, torchvision.load_torchvision(path, ALEXNET), params)
    )
    with pytest.raises(ValueError, match=r"alexnet\.safetensors: .*features\.2\.weight is missing"):
        torchvision.load_torchvision(path, VGG)
    path.write_bytes(path.read_bytes()[:50])
    for read in (
        torchvision.is_torchvision,
        lambda path: torchvision.load_torchvision(path, ALEXNET),
    ):
        with pytest.raises(ValueError, match=r"alexnet\.safetensors: not a safetensors file"):
            read(path)
        with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
            read(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_files(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    network = _network(VGG, torch, dropout_first=False).to(getattr(torch, dtype))
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    loaded = torchvision.load_torchvision(tmp_path / "vgg.pth", VGG)
    expected = torchvision.from_torchvision(VGG, network.float().state_dict())
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))


def test_torch_files_that_are_damaged_or_hold_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        torchvision.load_torchvision(path, VGG)
    torch.save(_network(VGG, torch, dropout_first=False).state_dict(), path)
    whole = path.read_bytes()
    for data in (b"", b"no torch file", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(
            ValueError,
            match=r"model\.pt: not a torch file with a state dict and nothing else \(\w+\)$",
        ):
            torchvision.load_torchvision(path, VGG)
    for value in ([1], {"state_dict": {}}, {"model": SimpleNamespace()}):
        torch.save(value, path)
        with pytest.raises(
            ValueError,
            match=r"model\.pt: not a torch file with a state dict and nothing else \(\w+\)$",
        ):
            torchvision.load_torchvision(path, VGG)


def test_torch_files_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r"vgg\.pth: torch's own files need torch: pip install 'purezoo\[torch\]'"
    ):
        torchvision.load_torchvision(tmp_path / "vgg.pth", VGG)
