"""The ledger: measured results of every recipe, in ``results.json`` next to this file.

    python -m evals.ledger                     prints it, with the recipes not measured yet
    python -m evals.ledger add RUN_DIR ...     adds evaluated runs, one seed each
    python -m evals.ledger markdown README.md  writes the table between a document's markers;
                                               --check only compares

All numbers in the documents come from the ledger, including the count of published results that are
reached ("9 of 12 published results"), which ``markdown`` rewrites wherever it occurs.  Each row
belongs to one recipe and one metric among its targets:

    recipe, metric
    published, published_kind  "result": the source reports it; "bound": the source's tests assert
                               that the metric is below it; null if nothing is published
    reached                    whether the median is at least as good as published (below a bound);
                               null if nothing is published
    value, spread              median over seeds, [least, greatest]
    seeds, values, times       aligned: each seed's measured value and training seconds
    command                    repeats the measurement, with the recipe's own seed
    seconds                    median training seconds
    hardware, date, version    of the newest run; version is purezoo's
"""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.ledger"))

import dataclasses
import json
import pathlib
import re
import shlex
import statistics
import sys
from typing import Annotated, Any

import tyro

from train import entry

RESULTS = pathlib.Path(__file__).with_name("results.json")
BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
CLAIM = re.compile(r"\d+ of \d+ published results")
Row = dict[str, Any]


class LedgerError(ValueError):
    """A run that cannot be added, or a document without markers; names it and the reason."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Prints the ledger, including recipes without a result."""

    file: pathlib.Path = RESULTS
    """The ledger's file."""


@dataclasses.dataclass(frozen=True)
class Add:
    """Adds evaluated runs to the ledger, one seed each; replaces a seed's earlier result."""

    run_dirs: Annotated[
        tuple[pathlib.Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]"),
    ]
    """Complete runs of registered recipes, evaluated with python -m evals."""
    file: pathlib.Path = RESULTS
    """The ledger's file."""


@dataclasses.dataclass(frozen=True)
class Markdown:
    """Rewrites the table between <!-- ledger:begin --> and <!-- ledger:end --> in a document.

    Also rewrites counts such as "9 of 12 published results".
    """

    document: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DOCUMENT")] = (
        pathlib.Path("README.md")
    )
    """A Markdown file."""
    check: bool = False
    """Only compare: the exit status is 1 if the document is out of date."""
    file: pathlib.Path = RESULTS
    """The ledger's file."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 an error or a difference, 2 a wrong command line."""
    command = tyro.cli(
        Show | Add | Markdown, default=Show(), prog=entry.program("evals.ledger"), args=arguments
    )  # pyright: ignore
    from train.engine.run_folder import RunError

    try:
        match command:
            case Add((), _):
                raise LedgerError("add: no RUN_DIR, allowed: one or more")
            case Add(run_dirs, file):
                for run_dir in run_dirs:
                    print("\n".join(add(run_dir, file)))
            case Markdown(document, check, file):
                return write_markdown(document, read(file), check)
            case Show(file):
                show(read(file))
    except (LedgerError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read(file: pathlib.Path = RESULTS) -> list[Row]:
    """The rows of a ledger file; [] without a file.  Raises LedgerError if it is invalid."""
    try:
        rows = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise LedgerError(f"{file}: unreadable: {error}") from error
    if not isinstance(rows, list):
        raise LedgerError(f"{file}: expected a JSON list")
    return rows


def add(run_dir: pathlib.Path, file: pathlib.Path = RESULTS) -> list[str]:
    """Adds a run's evaluation to the ledger file; returns a message per metric.

    Raises LedgerError unless the run is complete, uses a registered recipe (with any seed), and is
    evaluated at its best checkpoint; RunError if ``run_dir`` is not a run folder.
    """
    from train.engine.run_folder import write_text
    from train.recipes import RECIPES

    evaluation = check(run_dir)
    recipe = RECIPES[evaluation["recipe"]]
    rows = {(row["recipe"], row["metric"]): row for row in read(file)}
    messages = []
    for target in recipe.targets:
        key = (recipe.name, target.metric)
        if target.metric not in evaluation["metrics"]:
            raise LedgerError(
                f"{run_dir}: eval.json has no {target.metric!r}; "
                f"it has {', '.join(evaluation['metrics'])}"
            )
        earlier = rows.get(key)
        rows[key] = row = merge(earlier, recipe.name, target, evaluation)
        replaced = (
            " (replaces an earlier run)"
            if earlier and evaluation["seed"] in earlier["seeds"]
            else ""
        )
        value = _number(target.metric, evaluation["metrics"][target.metric])
        messages.append(
            f"{recipe.name}, {target.metric}: seed {evaluation['seed']} {value}{replaced}; "
            f"now {_value(row)}"
        )
    order = list(RECIPES)
    ordered = sorted(
        rows.values(),
        key=lambda row: order.index(row["recipe"]) if row["recipe"] in order else len(order),
    )
    write_text(file, _dumps(ordered))
    return messages


def check(run_dir: pathlib.Path) -> dict[str, Any]:
    """eval.json of a run that qualifies for the ledger; raises like ``add`` if it does not."""
    from evals.evaluation import FORMAT
    from train.engine.run_folder import RunFolder, differences, read_json
    from train.recipe import to_dict, written_out
    from train.recipes import RECIPES

    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    if recipe.name not in RECIPES:
        raise LedgerError(f"{run_dir}: {recipe.name!r} is not a registered recipe")
    registered = dataclasses.replace(RECIPES[recipe.name], seed=recipe.seed)
    if not registered.targets:
        raise LedgerError(f"{run_dir}: recipe {recipe.name} has no targets, so no metric to add")
    changed = list(
        differences(
            {"recipe": to_dict(written_out(recipe))}, {"recipe": to_dict(written_out(registered))}
        )
    )
    if changed:
        raise LedgerError(
            f"{run_dir}: not recipe {recipe.name} as registered (here): {'; '.join(changed)}"
        )
    if not folder.summary.exists():
        resume = f"{entry.program('train')} {shlex.join([recipe.name, '--out', str(run_dir)])}"
        raise LedgerError(f"{run_dir}: the run is not complete; {resume} resumes it")
    measure = f"{entry.program('evals')} {shlex.quote(str(run_dir))}"
    if not (folder.path / "eval.json").exists():
        raise LedgerError(f"{run_dir}: not evaluated yet; first {measure}")
    evaluation = read_json(folder.path / "eval.json")
    expected = {
        "format": FORMAT,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "step": read_json(folder.summary)["best_step"],
    }
    stale = [
        f"{key} {evaluation.get(key)}, the run {value}"
        for key, value in expected.items()
        if evaluation.get(key) != value
    ]
    if stale or not evaluation["training"]["complete"]:
        reason = "; ".join(stale) or "it was not complete yet"
        raise LedgerError(
            f"{run_dir}: eval.json does not match the current run: {reason}; "
            f"evaluate it again: {measure}"
        )
    return evaluation


def merge(row: Row | None, recipe: str, target: Any, evaluation: dict[str, Any]) -> Row:
    """The row (None: a new one) with one seed added or replaced."""
    runs = (
        {}
        if row is None
        else dict(zip(row["seeds"], zip(row["values"], row["times"], strict=True), strict=True))
    )
    training = evaluation["training"]
    runs[evaluation["seed"]] = (round(evaluation["metrics"][target.metric], 6), training["seconds"])
    seeds = sorted(runs)
    values, times = ([runs[seed][part] for seed in seeds] for part in (0, 1))
    value = round(statistics.median(values), 6)
    newest = {
        "hardware": training["hardware"],
        "date": training["date"],
        "version": training["versions"]["purezoo"],
    }
    if row is not None and row["date"] > newest["date"]:
        newest = {key: row[key] for key in newest}
    return {
        "recipe": recipe,
        "metric": target.metric,
        "published": target.published,
        "published_kind": None if target.published is None else target.published_kind,
        "reached": target.as_published(value),
        "value": value,
        "spread": [min(values), max(values)],
        "seeds": seeds,
        "values": values,
        "times": times,
        "command": f"python -m train {recipe} && python -m evals runs/{recipe}",
        "seconds": round(statistics.median(times), 2),
        **newest,
    }


def show(rows: list[Row]) -> None:
    """Prints a table of the rows and of the registered recipes without one."""
    from rich.console import Console
    from rich.table import Table

    from evals.metrics import reached
    from train.recipes import RECIPES

    columns = (
        "recipe",
        "metric",
        "published",
        "measured",
        "reached",
        "seeds",
        "expected",
        "",
        "time",
    )
    table = Table(*columns, box=None, pad_edge=False)
    measured = {(row["recipe"], row["metric"]): row for row in rows}
    targets = {
        (recipe.name, target.metric): target
        for recipe in RECIPES.values()
        for target in recipe.targets
    }
    for key in [*targets, *(key for key in measured if key not in targets)]:
        row, target = measured.get(key), targets.get(key)
        bound = "" if target is None else _bound(target)
        published = (row or {"published": None}) if target is None else dataclasses.asdict(target)
        cells = [*key, _published(published)]
        if row is None:
            table.add_row(*cells, "[dim]not measured[/dim]", "", "", bound, "", "")
            continue
        verdict = "ok" if bound else ""
        if target is None:
            verdict = "not registered"
        elif not reached(target, row["value"]):
            verdict = "[red]missed[/red]"
        is_reached = row["reached"] if target is None else target.as_published(row["value"])
        cells += [_value(row), _REACHED[is_reached].replace("**no**", "[red]no[/red]")]
        table.add_row(*cells, str(len(row["seeds"])), bound, verdict, _time(row["seconds"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    results, bounds = _counts(rows)
    print(f"{results} published results and {bounds} bounds that their tests assert are reached")


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table, with the command that repeats them."""
    lines = ["| recipe | metric | published | measured | reached | seeds | time |"]
    lines.append("| --- | --- | ---: | ---: | :---: | ---: | ---: |")
    for row in rows:
        cells = [
            f"`{row['recipe']}`",
            row["metric"],
            _published(row),
            _value(row),
            _REACHED[row["reached"]],
        ]
        cells += [str(len(row["seeds"])), _time(row["seconds"])]
        lines.append("| " + " | ".join(cells) + " |")
    if not rows:
        return "Nothing is measured yet."
    example = rows[0]["command"].replace(rows[0]["recipe"], "RECIPE")
    setups = sorted({f"{row['hardware']}, purezoo {row['version']}" for row in rows})
    results, bounds = _counts(rows)
    return "\n".join(
        [
            *lines,
            "",
            "Published: what the source reports; `< 8`: a bound that the source's tests assert.  "
            "Measured: median over seeds",
            "(least to greatest).  Reached: whether the median is at least as good as what is "
            "published;",
            f"{results} results and {bounds} bounds are.  Time: of one training.  "
            f"Measured on {'; '.join(setups)}.",
            "",
            f"`{example}` repeats a row; `--seed` and `--out` give other seeds.",
        ]
    )


def count(rows: list[Row], kind: str) -> tuple[int, int]:
    """(reached, total) of the published numbers of a kind, "result" or "bound"."""
    verdicts = [row["reached"] for row in rows if row["published_kind"] == kind]
    return verdicts.count(True), len(verdicts)


def _counts(rows: list[Row]) -> tuple[str, str]:
    """Counts of reached results and bounds, such as ("9 of 12", "8 of 8")."""
    results, bounds = (" of ".join(map(str, count(rows, kind))) for kind in ("result", "bound"))
    return results, bounds


def claim(rows: list[Row]) -> str:
    """The claim in README and the package description: "9 of 12 published results"."""
    return f"{_counts(rows)[0]} published results"


def write_markdown(document: pathlib.Path, rows: list[Row], check: bool = False) -> int:
    """Updates a document's table and every ``claim``; ``check`` only compares: 1 if they differ.

    Raises LedgerError if the markers are missing.
    """
    from train.engine.run_folder import write_text

    text = document.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LedgerError(f"{document}: no lines {BEGIN} and {END} to put the table between")
    before, after = (CLAIM.sub(claim(rows), part) for part in (before, after))
    wanted = f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}"
    if wanted == text:
        print(f"{document}: up to date")
    elif check:
        rewrite = f"{entry.program('evals.ledger')} markdown {shlex.quote(str(document))}"
        print(f"{document}: its numbers differ from the ledger; {rewrite} rewrites it")
        return 1
    else:
        write_text(document, wanted)
        print(f"{document}: rewritten")
    return 0


def _dumps(rows: list[Row]) -> str:
    """JSON with one line per key, even for lists, so that diffs are readable."""
    objects = [
        ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
        for row in rows
    ]
    return "[\n" + ",\n".join(f"  {{\n{lines}\n  }}" for lines in objects) + "\n]\n"


_REACHED = {True: "yes", False: "**no**", None: ""}


def _published(row: Row) -> str:
    """The published number of a row or of a target's fields: "1.65", or "< 8" for a bound."""
    if row["published"] is None:
        return ""
    return f"{'< ' if row['published_kind'] == 'bound' else ''}{row['published']:g}"


def _value(row: Row) -> str:
    median, least, greatest = (
        _number(row["metric"], value) for value in (row["value"], *row["spread"])
    )
    return median + (f" ({least} to {greatest})" if len(row["seeds"]) > 1 else "")


def _number(metric: str, value: float) -> str:
    return f"{value:.2f}" if "%" in metric.split() else f"{value:.4g}"


def _bound(target: Any) -> str:
    parts = [("<=", target.at_most), (">=", target.at_least)]
    return " ".join(f"{sign} {bound:g}" for sign, bound in parts if bound is not None)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
