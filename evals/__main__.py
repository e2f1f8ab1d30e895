"""Command line: ``zoo-evals RUN_DIR`` measures a run; ``--predict FILE ...`` labels files, ``--sample N`` writes."""

if __name__ == "__main__":  # python -m evals; before what takes seconds to import
    import sys

    from evals.entry import zoo_evals

    sys.exit(zoo_evals())

import contextlib
import dataclasses
import importlib.util
import itertools
import logging
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from train import entry

if TYPE_CHECKING:
    from evals.evaluation import Evaluation

PLOTS_NEED = "the report has no learning curves: they need matplotlib: pip install 'purezoo[evals]'"
LINES = 256
"""That are translated at a time."""
POLARITY = "images are taken as they are; if the training data are light on dark and yours dark on light, or so, add --invert"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures a finished run on its test split: numbers on the terminal and in eval.json, a report in report.html.

    With --predict, labels your own images or arrays instead; with --sample, a language model writes a text; with --translate, a
    translation model translates.
    """

    run_dir: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Run folder, as zoo-train made it."""
    split: str = "test"
    """Which part of the data to measure on: test, validation, train, or another that the data have."""
    predict: Annotated[tuple[pathlib.Path, ...] | None, tyro.conf.arg(metavar="FILE [FILE ...]")] = None
    """Label these files instead: images of any format, or npz files with an array "inputs"."""
    invert: bool = False
    """--predict, --caption, --segment: swap light and dark, where yours are the other way round than the training data (MNIST:
    light on dark)."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="TOKENS")] = None
    """Let a language model write so many tokens, characters or words."""
    prompt: str = ""
    """--sample: what the text begins with; words and punctuation are separated by spaces, as in the training text."""
    temperature: float = 1.0
    """--sample: below 1 what is probable is drawn more often; 0 always takes the most probable token."""
    top_k: int | None = None
    """--sample: draw among so many most probable tokens only."""
    seed: int = 0
    """--sample: decides what is drawn."""
    translate: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="TEXT [TEXT ...]")] = None
    """Translate these sentences."""
    translate_file: pathlib.Path | None = None
    """Translate each line of this file; - is standard input."""
    caption: Annotated[tuple[pathlib.Path, ...] | None, tyro.conf.arg(metavar="FILE [FILE ...]")] = None
    """Write captions of these images, and beside the run captions.html, which shows where the model looked."""
    segment: Annotated[tuple[pathlib.Path, ...] | None, tyro.conf.arg(metavar="FILE [FILE ...]")] = None
    """Label each pixel of these images, of any size: two PNGs for each in the folder segments beside the run, the image under its
    labels, and the labels alone."""
    alignment: pathlib.Path | None = None
    """--translate with one sentence: also draw where the model looked, into this SVG file."""
    beam: int = 5
    """--translate, --translate-file, --caption: hypotheses that are kept; 1 always takes the most probable token."""
    length_penalty: float = 1.0
    """--translate, --translate-file, --caption: above 0 longer ones are preferred to shorter ones of the same probability; with
    --beam 1 nothing is compared."""
    data_dir: str | None = None
    """Where data sets are looked up first (also $ZOO_DATA_DIR), before the download cache."""
    report: bool = True
    """Write report.html."""
    example: int = 0
    """Which example of the split the report looks at closely: its feature maps and scores; the passage from there on."""


def main(arguments: list[str] | None = None) -> int:
    """Evaluates or predicts; returns the exit status: 0 done, 1 an error, 2 a wrong command line, 3 Ctrl-C."""
    options = tyro.cli(Options, prog=entry.program("evals"), args=arguments)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it complains of a home that cannot be written, and does without
    with entry.importing():
        import evals.evaluation  # noqa: F401 (whatever is asked for)
        from train.checkpoint import CheckpointError
        from train.formats import DataError
        from train.run_folder import RunError

    try:
        return MODES[mode_of(options)](options)
    except (DataError, RunError, CheckpointError, ValueError, OSError) as error:
        if entry.interrupted() or isinstance(error, BrokenPipeError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def mode_of(options: Options) -> str | None:
    """Which of MODES is asked for.  Raises ValueError for several, for none of its files, and for options not read."""
    given = [name for name in MODES if name is not None and getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{_flag(given[0])} and {_flag(given[1])}: give one of them")
    mode = given[0] if given else None
    if mode is not None and getattr(options, mode) == ():
        raise ValueError(f"{_flag(mode)}: nothing after it, allowed: one or more")
    for field in dataclasses.fields(options):
        modes = READ_BY.get(field.name, (mode,))
        if mode not in modes and getattr(options, field.name) != field.default:
            where = " or ".join("where a run is measured" if each is None else f"with {_flag(each)}" for each in modes)
            raise ValueError(f"{_flag(field.name)}: only {where}")
    return mode


def _flag(name: str) -> str:
    return "--no-report" if name == "report" else f"--{name.replace('_', '-')}"


def evaluate(options: Options) -> int:
    """Measures, writes eval.json and report.html, and says where they are; of runs trained side by side each, and compares."""
    from evals.evaluation import evaluate as measure
    from evals.evaluation import training
    from train.run_folder import RunFolder

    members = RunFolder.open(options.run_dir).recipe().members
    if len(members) > 1:
        return evaluate_members(options, list(members))
    evaluation = measure(options.run_dir, options.split, options.data_dir, example=options.example)
    kept = keep(evaluation, options.report)
    if not training(evaluation.run.folder)["complete"]:
        print("the run is not complete: this is its best checkpoint so far")
    if options.report and importlib.util.find_spec("matplotlib") is None:
        print(PLOTS_NEED)
    print_results(evaluation, options.report, kept)
    return 0 if kept else 1


def keep(evaluation: "Evaluation", report: bool) -> bool:
    """Writes eval.json and report.html; says so where they cannot be written, as what was measured is still worth showing."""
    from evals.evaluation import write_evaluation

    try:
        write_evaluation(evaluation)
        if report:
            from evals.report import write_report

            write_report(evaluation)
    except OSError as error:
        print(f"error: the results are not kept: {error}", file=sys.stderr)
        return False
    return True


def evaluate_members(options: Options, labels: list[str]) -> int:
    """Measures every run of a folder that holds several, and prints a table with mean and spread."""
    from evals.evaluation import evaluate as measure
    from train.member import compare_members
    from train.run_folder import read_json

    rows, files, kept = {}, [], True
    for label in labels:
        folder = options.run_dir / label
        evaluation = measure(folder, options.split, options.data_dir, example=options.example)
        if keep(evaluation, options.report):
            files.append(str(evaluation.file))
        else:
            kept = False
        summary = folder / "summary.json"
        diverged = read_json(summary).get("diverged") if summary.exists() else None
        rows[label] = {"diverged": diverged, **evaluation.metrics}
    print("\n".join(compare_members(rows)))
    if files:
        print(f"numbers {', '.join(files)}")
    return 0 if kept else 1


def print_results(evaluation: "Evaluation", report: bool, kept: bool) -> None:
    """Metrics, accuracy last; then where the files are, if they could be written, and what to try next."""
    from evals.evaluation import show_metric

    run = evaluation.run
    print(f"{run.recipe.name}, seed {run.recipe.seed}, step {run.step}, {evaluation.measured_on}")
    for name in sorted(evaluation.metrics, key=lambda name: "accuracy" in name):
        print(show_metric(name, evaluation.metrics[name], evaluation.items, evaluation.intervals.get(name)))
    if evaluation.note:
        print(evaluation.note)
    folder = shlex.quote(str(run.folder.path))
    print(f"checkpoint {run.folder.checkpoints / str(run.step)}")
    if kept:
        print(f"report {evaluation.report}" if report else f"numbers {evaluation.file}")
    if evaluation.predictions is not None:
        print(f"next: {entry.program('evals')} {folder} --predict FILE   labels your own images")
    if evaluation.log_probabilities is not None:
        print(f'next: {entry.program("evals")} {folder} --sample 500 --prompt "..."   lets the model write')
    if evaluation.translations is not None:
        translates = "source" in run.data.tokenizers
        print(
            f"next: {entry.program('evals')} {folder} "
            + ('--translate "..."   translates' if translates else "--caption FILE   says what it shows")
        )
    if evaluation.segments is not None:
        print(f"next: {entry.program('evals')} {folder} --segment FILE   labels its pixels")
    print(f"next: {entry.program('train')} --list   shows the other recipes")


def sample(options: Options) -> int:
    """Prints the prompt as the model reads it and what it writes after it; words that it does not know are named."""
    from evals.evaluation import restore
    from evals.language import read_prompt, write
    from train.text import decode

    run = restore(options.run_dir)
    prompt, unknown = read_prompt(run, options.prompt)
    written = write(run, prompt, options.sample or 0, temperature=options.temperature, top_k=options.top_k, seed=options.seed)
    if unknown:
        print(f"not in the vocabulary, read as <unk>: {' '.join(map(repr, unknown))}", file=sys.stderr)
    print(decode([*prompt[1:], *written], run.data.vocabulary))
    return 0


def translate(options: Options) -> int:
    """Prints a line for each sentence, and says what of them is not in the vocabulary."""
    from evals import translation
    from evals.evaluation import restore
    from train.formats import DataError
    from train.run_folder import write_text

    sentences = options.translate or ()
    if options.alignment is not None and len(sentences) != 1:
        raise ValueError(f"--alignment: {len(sentences)} sentences after --translate, allowed: 1")
    run = restore(options.run_dir)
    lines = iter(sentences) if options.translate_file is None else read_lines(options.translate_file)
    # From a terminal each line is answered as it comes.
    at_a_time = 1 if options.translate_file == pathlib.Path("-") and sys.stdin.isatty() else LINES
    rows = None
    while group := list(itertools.islice(lines, at_a_time)):
        rows = rows or min(len(group), translation.ROWS)  # for all groups alike, of which the last one is smaller
        found = translation.translate(run, group, beam=options.beam, length_penalty=options.length_penalty, rows=rows)
        unknown = run.data.tokenizers["source"].unknown(group)
        if unknown:
            print(f"not in the vocabulary, read as <unk>: {' '.join(map(repr, unknown))}", file=sys.stderr)
        for each in found:
            print(each.text, flush=True)
        if options.alignment is not None:
            svg = translation.alignment(run, group[0], found[0])
            if svg is None:
                raise DataError(f"{run.folder.path}: the model has no attention, or the sentence no word; nothing to draw")
            write_text(options.alignment, svg)
    return 0


def caption(options: Options) -> int:
    """Prints a line for each image, and writes captions.html into the run folder."""
    import html

    import numpy as np

    from evals.captions import caption as write
    from evals.captions import overlays, read_own, require_captions
    from evals.evaluation import restore
    from evals.page import PAGE, STYLE, titled
    from evals.prediction import readable
    from train.run_folder import write_text

    run, broken, sections = restore(options.run_dir), Broken(), []
    require_captions(run)
    images = list(readable(options.caption or (), lambda file: read_own(run, file), broken))
    if not images:
        return 1
    pixels = np.stack([image for _, image in images])
    pixels = 255 - pixels if options.invert else pixels
    found = write(run, pixels, beam=options.beam, length_penalty=options.length_penalty)
    for (file, _), image, each in zip(images, pixels, found, strict=True):
        print(f"{file}  {each.text}")
        sections.append(titled(str(file), overlays(run, image, each)))
    page = run.folder.path / "captions.html"
    title = html.escape(f"{run.recipe.name}, captions")
    write_text(page, PAGE.replace("{title}", title).replace("{style}", STYLE).replace("{sections}", "".join(sections)))
    print(f"overlays {page}")
    return int(broken.found)


def segment(options: Options) -> int:
    """Prints for each image what is in it, and writes PNGs of its labels into the run's folder."""
    import numpy as np
    from PIL import Image

    from evals import pixels
    from evals.evaluation import restore
    from evals.page import as_bytes
    from evals.prediction import readable
    from train.formats import DataError, image_size, read_image

    run, broken = restore(options.run_dir), Broken()
    if not pixels.segments_images(run):
        raise DataError(f"{run.folder.path}: this run's model does not label pixels")
    channels = (run.data.input_shape or (1,))[-1]
    folder, done = run.folder.path / "segments", False

    def labelled(numbered: tuple[int, pathlib.Path]) -> tuple[Any, Any]:
        _, file = numbered
        image = read_image(file, (*image_size(file), channels))
        image = 255 - image if options.invert else image
        try:
            return image, pixels.segment(run, image[None])[0]
        except ValueError as error:  # the model refuses the size
            raise DataError(f"{file}: {error}") from error

    for (number, file), (image, labels) in readable(enumerate(options.segment or ()), labelled, broken):
        folder.mkdir(exist_ok=True)
        stem, done = f"{number}-{file.stem}", True
        Image.fromarray(pixels.overlay(as_bytes(image, run.data.input_range), labels)).save(folder / f"{stem}.png")
        alone = Image.fromarray(labels, "P")
        alone.putpalette(np.ravel(pixels.palette(256)).tolist())
        alone.save(folder / f"{stem}-labels.png")
        print(f"{file}  {pixels.shares(run, labels)}")
    if done:
        print(f"overlays {folder}")
    return int(broken.found)


def read_lines(file: pathlib.Path) -> Iterator[str]:
    """Lines of a file, or of standard input for -, as they are needed.  Raises DataError naming the line that is not UTF-8."""
    from train import formats

    if file.is_file():
        yield from formats.read_lines(file)
        return
    with contextlib.ExitStack() as stack:
        stream = sys.stdin.buffer if file == pathlib.Path("-") else stack.enter_context(file.open("rb"))
        for number, line in enumerate(stream, 1):
            yield formats.decoded(f"{file}:{number}", line).rstrip("\r\n")


def predict(options: Options) -> int:
    """Prints a line for each item of each file; a file that cannot be read is named, and the others are still labelled."""
    from evals.evaluation import restore
    from evals.prediction import holds_arrays, predict_files, show_item

    run, broken, files = restore(options.run_dir), Broken(), options.predict or ()
    for label, outputs in predict_files(run, files, invert=options.invert, failed=broken):
        print(show_item(run, label, outputs))
    if not options.invert and not all(map(holds_arrays, files)):
        print(POLARITY, file=sys.stderr)
    return int(broken.found)


class Broken:
    """Names what is wrong with a file, and remembers that something was."""

    found = False

    def __call__(self, error: Exception) -> None:
        """Prints it."""
        self.found = True
        print(f"error: {error}", file=sys.stderr)


MODES: dict[str | None, Callable[[Options], int]] = {
    None: evaluate,
    "predict": predict,
    "translate": translate,
    "translate_file": translate,
    "caption": caption,
    "segment": segment,
    "sample": sample,
}
"""What is done, by the option that asks for it."""
READ_BY: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("split", "example", "report"), (None,)),
    "invert": ("predict", "caption", "segment"),
    **dict.fromkeys(("prompt", "temperature", "top_k", "seed"), ("sample",)),
    "alignment": ("translate",),
    **dict.fromkeys(("beam", "length_penalty"), ("translate", "translate_file", "caption")),
}
"""Options that some modes read: elsewhere they would change nothing."""
