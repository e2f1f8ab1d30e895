"""Console output of a run: a live line on a terminal, occasional plain lines elsewhere."""

import os
import pathlib
import sys
import time
from typing import Any

PLAIN_SECONDS = 10.0
"""Minimum time between two plain lines."""
NOT_METRICS = ("step", "epoch", "split", "seconds")
"""Keys of a history line that are not metrics."""
DUMB = (None, "", "dumb", "unknown")
"""Values of $TERM for terminals that cannot redraw a line."""


class Progress:
    """A context manager that shows the lines of the metrics history as they come."""

    def __init__(
        self,
        name: str,
        total: int,
        steps_per_epoch: int,
        quiet: bool = False,
        tensorboard: pathlib.Path | None = None,
    ) -> None:
        """total: steps of the run.  tensorboard: run folder in which to write event files."""
        self.name, self.total, self.steps_per_epoch, self.quiet = (
            name,
            total,
            steps_per_epoch,
            quiet,
        )
        self._live: Any = None
        self._task: Any = None
        self._train: dict[str, Any] = {}
        self._validation: dict[str, Any] = {}
        self._last_plain = (
            time.monotonic() - PLAIN_SECONDS + 1
        )  # the first line comes after a second
        self._unshown = False
        self._rate: tuple[int, float] | None = None
        self._per_second = self._left = 0.0
        self._writer: Any = None
        if tensorboard is not None:
            self._writer = summary_writer()(str(tensorboard / "tensorboard"))

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stdout.isatty() and os.environ.get("TERM") not in DUMB:
            from rich import progress

            self._live = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=20),
                progress.TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
                progress.TimeRemainingColumn(),
            )
            self._live.start()
            self._task = self._live.add_task(self.name, total=self.total, note="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._print_last()
        if self._writer is not None:
            self._writer.close()

    def say(self, message: str) -> None:
        """Prints a message on a separate line, unless quiet."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.console.print(message, highlight=False, markup=False, soft_wrap=True)
        else:
            self._print_last()
            print(message, flush=True)

    def update(self, line: dict[str, Any], batch_size: int) -> None:
        """Shows a new line of the metrics history."""
        if self._writer is not None:
            for name, value in _metrics(line).items():
                self._writer.add_scalar(f"{line['split']}/{name}", value, line["step"])
        if line["split"] == "train":
            self._train = line
            self._measure(line["step"], batch_size)
        else:
            self._validation = line
        if self.quiet:
            return
        if self._live is not None:
            self._live.update(self._task, completed=line["step"], note=self._note())
            return
        self._unshown = True
        self._left = (
            (self.total - line["step"]) * batch_size / self._per_second if self._per_second else 0.0
        )
        if time.monotonic() - self._last_plain >= PLAIN_SECONDS:
            self._print()

    def _print_last(self) -> None:
        """Prints the newest line, if it is not shown yet, before a message or the end."""
        if self._unshown:
            self._left = 0.0  # the message may be that the run stops
            self._print()

    def _print(self) -> None:
        self._last_plain, self._unshown = time.monotonic(), False
        left = f"  {_clock(self._left)} left" if self._left else ""
        print(
            f"{self.name}  step {self._train.get('step', 0)}/{self.total}  {self._note()}{left}",
            flush=True,
        )

    def _measure(self, step: int, batch_size: int) -> None:
        now = time.perf_counter()
        if self._rate is not None and now > self._rate[1]:
            self._per_second = (step - self._rate[0]) * batch_size / (now - self._rate[1])
        self._rate = (step, now)

    def _note(self) -> str:
        parts = [f"epoch {self._train.get('step', 0) / self.steps_per_epoch:.1f}"]
        parts += [f"{name} {_show(name, value)}" for name, value in _metrics(self._train).items()]
        parts += [
            f"validation {name} {_show(name, value)}"
            for name, value in _metrics(self._validation).items()
        ]
        return "  ".join(parts + [f"{self._per_second:,.0f} examples/s"] * bool(self._per_second))


def summary_writer() -> Any:
    """The class that writes TensorBoard's files.  Raises ValueError if it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs tensorboardX: pip install 'purezoo[tensorboard]'"
        ) from None
    return SummaryWriter


def _metrics(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in NOT_METRICS}


def _show(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        if minutes >= 60
        else f"{minutes}:{seconds:02d}"
    )
