"""How the parameters of a stage, or of a file, initialise the next stage.

A transfer is a pure function (earlier Config, earlier params, Config, fresh params) -> params,
which recipes refer to by name.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from zoo import autoencoder, convnet, dbn
from zoo.base import Params
from zoo.parts.parameters import restore_matching

Transfer = Callable[[Any, Params, Any, Params], Params]


def matching(earlier_cfg: Any, earlier: Params, cfg: Any, fresh: Params) -> Params:
    """Takes leaves with the same path and shape from the earlier stage; the others stay fresh.

    See ``restore_matching``.  Raises ValueError if nothing matches.
    """
    return restore_matching(earlier, fresh)


def unroll(earlier_cfg: Any, earlier: Params, cfg: Any, fresh: Params) -> Params:
    """Unrolls a deep belief net into an autoencoder, see ``zoo.autoencoder.unroll``.

    Raises ValueError for other models, and if the types of units do not correspond.
    """
    if not (isinstance(earlier_cfg, dbn.Config) and isinstance(cfg, autoencoder.Config)):
        models = " and ".join(type(config).__module__ for config in (earlier_cfg, cfg))
        raise ValueError(
            f"transfer='unroll' between {models}, allowed: zoo.dbn and zoo.autoencoder"
        )
    kinds = {"bernoulli": "logistic", "gaussian": "linear"}
    units = {"activation": "bernoulli"} if len(cfg.sizes) > 2 else {}
    units |= {"output": earlier_cfg.visible_units, "code": earlier_cfg.top_units}
    for field, kind in units.items():
        have = vars(cfg)[field] or cfg.activation
        if have != kinds[kind]:
            raise ValueError(
                f"{field}={have!r}, "
                f"allowed after a deep belief net with {kind} units there: {kinds[kind]!r}"
            )
    return autoencoder.unroll(cfg, earlier)


TRANSFERS: dict[str, Transfer] = {"matching": matching, "unroll": unroll}


def load_params(source: str | os.PathLike[str], cfg: Any) -> Params:
    """Parameters from a run folder's best checkpoint or from a file.

    source: a run folder, a file of ``zoo.interop.save_safetensors``, or torchvision's weights.
    cfg: Config of the model to initialise.  From torchvision's weights, only leaves that fit it, or
        the ConvNet within it, are read.
    Raises ValueError, RunError, CheckpointError or FileNotFoundError naming the source and problem.
    """
    from train.engine.run_folder import load
    from zoo.interop import load_safetensors
    from zoo.interop.torchvision import is_torchvision, load_torchvision

    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such run folder or file")
    if path.is_dir():
        return load(path)[2]
    if not is_torchvision(path):
        return load_safetensors(path)
    networks = (part for part in vars(cfg).values() if isinstance(part, convnet.Config))
    return load_torchvision(path, next(networks, cfg), strict=False)
