"""Vanishing gradients: the norm of the gradient at each time step of a recurrent network.

    python -m evals.gradients RUN [RUN ...] --plot docs/gradients.svg

LeCun, Bengio, Hinton (2015), page 441: "it is difficult to learn to store information for very
long", because the backpropagated gradients grow or shrink at each time step, so that they explode
or vanish over many steps (Hochreiter 1991; Bengio et al. 1994).
"""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.gradients"))

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from evals.base import Evaluation
from evals.report.page import plot, titled
from evals.run import Run, load_split
from evals.runs import COLORS, named
from train import entry
from train.engine.run_folder import write_text
from train.engine.step import init_state, root_key
from zoo import rnn
from zoo.base import Params
from zoo.parts.layers import NATURAL_OBJECTIVE, output_losses

EXAMPLES = 100
LINES = {"before training": ":", "trained": "-"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Plots the norm of the gradient with respect to the state at each time step.

    Runs must be recurrent networks whose outputs are those of the last step (e.g. adding-lstm).
    """

    run_dirs: Annotated[
        tuple[pathlib.Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]"),
    ]
    """Run folders."""
    plot: pathlib.Path
    """SVG file to write."""
    data_dir: str | None = None
    """Folder searched for data sets first (also $ZOO_DATA_DIR)."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 error, 2 invalid command line."""
    options = tyro.cli(Options, prog=entry.program("evals.gradients"), args=arguments)
    from train.engine.checkpoint import CheckpointError
    from train.engine.run_folder import RunError
    from train.formats import DataError

    try:
        norms = {}
        for name, run in named(options.run_dirs).items():
            if not applies(run):
                what = f"{run.folder.path}: {run.recipe.name}"
                raise ValueError(
                    f"{what}, expected a recurrent network whose outputs are the last step's"
                )
            norms[name] = of_run(run, load_split(run, "test", options.data_dir))
        write_text(options.plot, draw(norms))
    except (DataError, RunError, CheckpointError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, lines in norms.items():
        for label, values in lines.items():
            print(
                f"{name}, {label}: {values[-1]:.2g} at the last step, "
                f"{values[0]:.2g} at the first of {len(values)}"
            )
    print(f"plot {options.plot}")
    return 0


def applies(run: Run) -> bool:
    """Whether the run's model is a unidirectional RNN whose output is that of the last step."""
    cfg = run.recipe.model
    return isinstance(cfg, rnn.Config) and cfg.read_out == "last" and not cfg.bidirectional


def through_time(evaluation: Evaluation) -> str | None:
    """Report section with the gradient norms of the run."""
    if not applies(evaluation.run):
        return None
    norms = of_run(evaluation.run, evaluation.table)
    count = min(EXAMPLES, evaluation.count)
    text = (
        "Norm of the gradient of the loss with respect to the state at each step, mean over "
        f"{count} examples.  If it falls by orders of magnitude towards the first steps, the model "
        "cannot learn from early inputs."
    )
    return titled(
        "Gradients through time",
        f"<p>{text}</p><figure>{draw({evaluation.run.recipe.name: norms})}</figure>",
    )


def of_run(run: Run, table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Norms over examples of a raw table: {"before training": [time], "trained": [time]}."""
    recipe, count = run.recipe, min(EXAMPLES, len(table["inputs"]))
    raw = jnp.asarray(table["inputs"][:count])
    inputs = raw if run.scaling is None else run.scaling(raw)
    inputs = inputs.reshape(*inputs.shape[:2], -1)
    fresh = init_state(
        run.module, recipe.model, recipe.optimizer.build(1, 1), root_key(recipe.seed), 1
    ).params
    both = {"before training": fresh, "trained": run.params}
    targets = jnp.asarray(table["targets"][:count])
    return {
        label: norms(run.module, recipe.model, params, inputs, targets)
        for label, params in both.items()
    }


def norms(module: Any, cfg: Any, params: Params, inputs: Array, targets: Array) -> np.ndarray:
    """Mean norm of d loss / d carry before each step [time], for inputs [batch, time, features].

    The loss is that of the outputs at the last step.
    """
    # A zero is added to the carry of each step: the gradient with respect to the zero equals that
    # with respect to the carry.
    start = module.initial_carry(cfg, params, inputs.shape[0])
    steps = inputs.swapaxes(0, 1)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((len(steps), *leaf.shape), leaf.dtype), start)

    def loss(zeros: Any) -> Array:
        def body(carry: Any, at: Any) -> tuple[Any, Array]:
            x, zero = at
            return module.step(cfg, params, jax.tree.map(jnp.add, carry, zero), x)

        _, logits = jax.lax.scan(body, start, (steps, zeros))
        return jnp.sum(
            output_losses(
                cfg.output, cfg.objective or NATURAL_OBJECTIVE[cfg.output], logits[-1], targets
            )
        )

    gradients = jax.jit(jax.grad(loss))(zeros)
    squared = sum(jnp.sum(jnp.square(leaf), axis=-1) for leaf in jax.tree.leaves(gradients))
    return np.asarray(jnp.mean(jnp.sqrt(squared), axis=1))


def draw(runs: dict[str, dict[str, np.ndarray]]) -> str:
    """SVG of the norms over the steps, with a logarithmic y axis."""

    def lines(axes: Any) -> None:
        for color, (name, both) in zip(COLORS, runs.items(), strict=False):
            for label, values in both.items():
                axes.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    LINES[label],
                    color=color,
                    label=f"{name}, {label}",
                )
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.legend(fontsize=9)

    return plot("gradient norm", lines)
