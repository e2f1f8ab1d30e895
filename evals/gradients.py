"""How far back in time an error reaches: the gradient's norm at each step of a recurrent network.

    python -m evals.gradients RUN [RUN ...] --plot docs/gradients.svg

The review (page 441): "it is difficult to learn to store information for very long", as the backpropagated gradients either grow
or shrink at each time step, so over many they explode or vanish (Hochreiter 1991; Bengio et al. 1994).
"""

if __name__ == "__main__":  # before what takes seconds to import
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
    """Draws how large the gradient with respect to the state is at each step, of runs read off the last one (adding-lstm)."""

    run_dirs: Annotated[
        tuple[pathlib.Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]"),
    ]
    """Run folders."""
    plot: pathlib.Path
    """The SVG file to write."""
    data_dir: str | None = None
    """Where data sets are looked up first (also $ZOO_DATA_DIR)."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 an error, 2 a wrong command line."""
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
                f"{name}, {label}: {values[-1]:.2g} at the last step, {values[0]:.2g} at the first of {len(values)}"
            )
    print(f"plot {options.plot}")
    return 0


def applies(run: Run) -> bool:
    """Whether the run's model goes step by step, and is read off the last one."""
    cfg = run.recipe.model
    return isinstance(cfg, rnn.Config) and cfg.read_out == "last" and not cfg.bidirectional


def through_time(evaluation: Evaluation) -> str | None:
    """Section of the report: see the module."""
    if not applies(evaluation.run):
        return None
    norms = of_run(evaluation.run, evaluation.table)
    count = min(EXAMPLES, evaluation.count)
    text = f"Norm of the loss's gradient with respect to the state at each step, mean over {count} examples.  Where it falls "
    text += "by orders of magnitude, early inputs teach nothing; where it stays, they do."
    return titled(
        "Gradients through time",
        f"<p>{text}</p><figure>{draw({evaluation.run.recipe.name: norms})}</figure>",
    )


def of_run(run: Run, table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"before training": norms [time], "trained": ...} over examples of a raw table."""
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
    """Mean norm of d loss / d carry before each step [time], of inputs [batch, time, features] read off the last step.

    To the carry of each step a zero is added; the gradients with respect to these zeros are the carries'.
    """
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
    """Lines over the steps, logarithmic, as SVG."""

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
