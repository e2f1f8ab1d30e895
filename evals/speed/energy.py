"""Contrastive divergence and annealed importance sampling: the zoo, plain torch and plain numpy.

The peers are written for speed, by hand, without automatic differentiation: in-place operations,
fused products with bias, single-precision uniform numbers from each library's own generator, and a
kernel transposed only once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals.speed.contenders import (
    MOMENTUM,
    RATE,
    TORCH_THREADS,
    BackToBack,
    Jitted,
    has_torch,
    zoo_program,
)
from zoo import rbm
from zoo.parts import likelihood

BATCH = 100


def divergence(
    steps: int = 1, batch: int = BATCH, visible: int = 784, hidden: int = 500
) -> dict[str, Any]:
    """Contenders for a training step of CD-k: {peer: BackToBack}."""
    cfg = rbm.Config(visible=visible, hidden=hidden, steps=steps)
    return dividing(
        cfg, rbm.init(cfg, jax.random.key(1)), rbm.example_batch(cfg, jax.random.key(0), batch)
    )


def dividing(cfg: rbm.Config, params: Any, batch: Any, rate: float = RATE) -> dict[str, Any]:
    """The same from given parameters on a given batch."""
    arrays = [
        np.asarray(leaf)
        for leaf in (params["kernel"], params["visible_bias"], params["bias"], batch["inputs"])
    ]
    timed: dict[str, Any] = {"zoo": Jitted(zoo_program(rbm, cfg, batch, rate), params)}
    return timed | {
        name: _Divergence(peer(*arrays, rate), cfg.steps) for name, peer in _peers().items()
    }


def annealing(
    temperatures: int = 1000, chains: int = 100, visible: int = 784, hidden: int = 500
) -> dict[str, Any]:
    """Contenders for an estimate of log Z: {peer: BackToBack}."""
    cfg = rbm.Config(visible=visible, hidden=hidden)
    params = rbm.init(cfg, jax.random.key(1))
    arrays = [
        np.asarray(leaf) for leaf in (params["kernel"], params["visible_bias"], params["bias"])
    ]
    states = np.zeros((chains, visible), np.float32)
    timed: dict[str, Any] = {"zoo": _Annealed(cfg, params, temperatures, chains)}
    return timed | {
        name: _Annealing(peer(*arrays, states), temperatures) for name, peer in _peers().items()
    }


ENERGY: dict[str, Callable[..., dict[str, Any]]] = {
    "cd1": divergence,
    "cd25": functools.partial(divergence, 25),
    "ais": annealing,
}
"""{row: function of its sizes, all with defaults, that returns the contenders}."""


def _peers() -> dict[str, Any]:
    return {"torch": _Torch, "numpy": _Numpy} if has_torch() else {"numpy": _Numpy}


class _Annealed(BackToBack):
    """The zoo's estimate."""

    def __init__(self, cfg: rbm.Config, params: Any, temperatures: int, chains: int) -> None:
        self.arguments, self.options = (
            (cfg, params, jax.random.key(0)),
            {"chains": chains, "temperatures": temperatures},
        )
        self.base = jnp.zeros(cfg.visible)

    def step(self) -> None:
        """Computes one estimate."""
        self.outputs = likelihood.annealed_log_partition(
            *self.arguments, base=self.base, **self.options
        )
        jax.block_until_ready(self.outputs)


class _Divergence(BackToBack):
    """A library's step of CD-k with momentum (Hinton 2002).

    The chain samples states; the statistics at both ends use the means of the hidden units.
    """

    def __init__(self, arrays: Any, steps: int) -> None:
        self.arrays, self.steps = arrays, steps

    def step(self) -> None:
        """Makes one update."""
        a = self.arrays
        positive = a.hidden_mean(a.data)
        visible, hidden, down = a.data, positive, a.transposed()
        for _ in range(self.steps):
            visible = a.draw(a.visible_mean(a.draw(hidden), down))
            hidden = a.hidden_mean(visible)
        a.update((a.data, positive), (visible, hidden))


class _Annealing(BackToBack):
    """A library's annealed importance sampling (Salakhutdinov and Murray 2008).

    The base distribution has independent units with probability 1/2.
    """

    def __init__(self, arrays: Any, temperatures: int) -> None:
        self.arrays, self.temperatures = arrays, temperatures

    def step(self) -> None:
        """Computes one estimate of log Z."""
        a, down = self.arrays, self.arrays.transposed()
        visible, weights = a.draw(a.data * 0 + 0.5), 0.0
        for index in range(self.temperatures):
            beta, colder = index / self.temperatures, (index + 1) / self.temperatures
            field = a.hidden_field(visible)
            bias_term = visible @ a.visible_bias
            weights = (
                weights
                + (colder - beta) * bias_term
                + a.softplus_sum(colder * field)
                - a.softplus_sum(beta * field)
            )
            hidden = a.draw(a.sigmoid(colder * field))
            visible = a.draw(a.sigmoid(colder * a.visible_field(hidden, down)))
        base = (len(a.visible_bias) + len(a.hidden_bias)) * math.log(2)
        self.outputs = base + a.log_mean(weights)


class _Numpy:
    def __init__(
        self, kernel: Any, visible_bias: Any, hidden_bias: Any, data: Any, rate: float = RATE
    ) -> None:
        self.kernel, self.visible_bias, self.hidden_bias, self.data = (
            np.array(leaf, np.float32) for leaf in (kernel, visible_bias, hidden_bias, data)
        )
        self.rate = rate
        self.random = np.random.default_rng(0)
        self.speed = [
            np.zeros_like(leaf) for leaf in (self.kernel, self.visible_bias, self.hidden_bias)
        ]

    def transposed(self) -> Any:
        return np.ascontiguousarray(self.kernel.T)

    def sigmoid(self, x: Any) -> Any:
        np.negative(x, out=x)
        np.exp(x, out=x)
        x += 1
        return np.reciprocal(x, out=x)

    def hidden_field(self, visible: Any) -> Any:
        field = visible @ self.kernel
        field += self.hidden_bias
        return field

    def visible_field(self, hidden: Any, down: Any) -> Any:
        field = hidden @ down
        field += self.visible_bias
        return field

    def hidden_mean(self, visible: Any) -> Any:
        return self.sigmoid(self.hidden_field(visible))

    def visible_mean(self, hidden: Any, down: Any) -> Any:
        return self.sigmoid(self.visible_field(hidden, down))

    def draw(self, mean: Any) -> Any:
        return (self.random.random(mean.shape, np.float32) < mean).astype(np.float32)

    def softplus_sum(self, x: Any) -> Any:
        return np.logaddexp(np.float32(0), x).sum(axis=1)

    def log_mean(self, weights: Any) -> Any:
        return np.log(np.mean(np.exp(weights - weights.max()))) + weights.max()

    def update(self, data: Any, chain: Any) -> None:
        (v0, h0), (v1, h1) = data, chain
        slopes = (v0.T @ h0 - v1.T @ h1, (v0 - v1).sum(axis=0), (h0 - h1).sum(axis=0))
        for leaf, speed, slope in zip(
            (self.kernel, self.visible_bias, self.hidden_bias), self.speed, slopes, strict=True
        ):
            speed *= np.float32(MOMENTUM)
            slope *= np.float32(1 / len(v0))
            speed += slope
            leaf += np.float32(self.rate) * speed


class _Torch:
    def __init__(
        self, kernel: Any, visible_bias: Any, hidden_bias: Any, data: Any, rate: float = RATE
    ) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(TORCH_THREADS)
        self.torch, self.rate = torch, rate
        self.kernel, self.visible_bias, self.hidden_bias, self.data = (
            torch.tensor(leaf) for leaf in (kernel, visible_bias, hidden_bias, data)
        )
        self.speed = [
            torch.zeros_like(leaf) for leaf in (self.kernel, self.visible_bias, self.hidden_bias)
        ]

    def transposed(self) -> Any:
        return self.kernel.T.contiguous()

    def sigmoid(self, x: Any) -> Any:
        return x.sigmoid_()

    def hidden_field(self, visible: Any) -> Any:
        return self.torch.addmm(self.hidden_bias, visible, self.kernel)

    def visible_field(self, hidden: Any, down: Any) -> Any:
        return self.torch.addmm(self.visible_bias, hidden, down)

    def hidden_mean(self, visible: Any) -> Any:
        return self.hidden_field(visible).sigmoid_()

    def visible_mean(self, hidden: Any, down: Any) -> Any:
        return self.visible_field(hidden, down).sigmoid_()

    def draw(self, mean: Any) -> Any:
        return (self.torch.rand_like(mean) < mean).float()

    def softplus_sum(self, x: Any) -> Any:
        return self.torch.nn.functional.softplus(x).sum(dim=1)

    def log_mean(self, weights: Any) -> Any:
        return self.torch.logsumexp(weights, 0) - math.log(len(weights))

    def update(self, data: Any, chain: Any) -> None:
        (v0, h0), (v1, h1) = data, chain
        kernel, visible_bias, hidden_bias = self.speed
        kernel.mul_(MOMENTUM).addmm_(v0.T, h0, alpha=1 / len(v0)).addmm_(
            v1.T, h1, alpha=-1 / len(v0)
        )
        visible_bias.mul_(MOMENTUM).add_((v0 - v1).sum(0), alpha=1 / len(v0))
        hidden_bias.mul_(MOMENTUM).add_((h0 - h1).sum(0), alpha=1 / len(v0))
        for leaf, speed in zip(
            (self.kernel, self.visible_bias, self.hidden_bias), self.speed, strict=True
        ):
            leaf.add_(speed, alpha=self.rate)
