"""The run folder: what a run was, what it measured, and how to get its model back.

config.json     format version, recipe (complete: rebuilds the run), fingerprint of the data, JAX's settings, versions
data.json       task, shape, range and scaling of the inputs: what prediction needs without the data
metrics.jsonl   one JSON object a line: step, epoch, split, seconds, and the metrics
checkpoints/    see train.engine.checkpoint
lock            held while a process trains here
summary.json    written when the run is complete
"""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import zoo
from train import tasks
from train.batches import Scaling
from train.dataset import Dataset
from train.engine import cluster
from train.engine.checkpoint import CheckpointError, Checkpoints
from train.engine.step import PRNG, TrainState, init_state, root_key
from train.places import may_write
from train.recipe import Recipe, from_dict, module_of, to_dict
from train.tasks import Task
from zoo.base import Model, Params

FORMAT = 2
_LINE = {"step": int, "split": str, "seconds": (int, float)}


class RunError(RuntimeError):
    """A run folder that is not one, or that belongs to another run."""


class RunData(NamedTuple):
    """What prediction needs to know about the data that a run was trained on.

    task: what the model learned, see ``train.tasks``.
    input_shape: of one example, or its image; None for inputs of several arrays without an image.
    input_range: least and greatest raw value.
    """

    name: str
    task: Task
    scaling: Scaling
    input_shape: tuple[int, ...] | None
    input_range: tuple[float, float]


class RunFolder:
    """Paths and small files of one run.  ``create`` and ``open`` make one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"

    @classmethod
    def check(
        cls, path: str | os.PathLike[str], recipe: Recipe[Any, Any], fingerprint: str
    ) -> "RunFolder":
        """The folder of this run, which need not exist.  Raises RunError that says what differs if it holds another run."""
        folder = cls(path)
        if not cluster.first():  # of several processes, the first one looks and writes
            return folder
        if (folder.path / "config.json").exists():
            # Through the recipe, so that settings which an older version did not know have their defaults.
            compared = {
                "recipe": to_dict(folder.recipe()),
                "data_fingerprint": folder.config()["data_fingerprint"],
            }
            different = list(
                differences(compared, {"recipe": to_dict(recipe), "data_fingerprint": fingerprint})
            )
            if different:
                raise RunError(
                    f"{folder.path} holds a run with another configuration: {'; '.join(different)}.  "
                    "Choose another folder with --out, or repeat the same options to resume"
                )
            folder.check_settings(*jax_settings())
        elif folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise RunError(
                f"{folder.path} is not empty and holds no config.json of a run; choose another folder with --out"
            )
        return folder

    def require_writable(self) -> None:
        """Raises RunError unless this user may write here, or make the folder."""
        if cluster.first() and not may_write(self.path):
            raise RunError(f"{self.path}: no right to write here; choose another folder with --out")

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], recipe: Recipe[Any, Any], fingerprint: str
    ) -> "RunFolder":
        """A new folder, or the same run's; raises like ``check``."""
        folder = cls.check(path, recipe, fingerprint)
        file = folder.path / "config.json"
        if cluster.first() and not file.exists():
            config = {"format": FORMAT, "recipe": to_dict(recipe), "data_fingerprint": fingerprint}
            config |= {"jax": jax_settings(), "versions": versions()}
            json.dumps(
                config
            )  # raises here, before there is a folder, where a user's own Config cannot be written
            made = [place for place in (folder.path, *folder.path.parents) if not place.exists()]
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
                write_json(file, config)
            except BaseException:
                with contextlib.suppress(OSError):
                    for place in made:
                        place.rmdir()
                raise
        return folder

    def check_settings(self, *names: str) -> None:
        """Raises RunError unless these of JAX's ``jax_settings`` are those that the run was begun with, where it recorded any."""
        there, here = self.config().get("jax", {}), jax_settings()
        for name in names:
            if name in there and there[name] != here[name]:
                was, now = map(_shown, (there[name], here[name]))
                raise RunError(
                    f"{self.path}: {name} was {was} when the run was begun, and is {now} here; set it as it was"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training here.  The system releases the lock when the process ends, however it ends."""
        if not cluster.first():
            yield
            return
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{self.path}: another process is training here; wait for it, or choose another folder"
                ) from None
            yield

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """An existing run's folder.  Raises RunError if there is none."""
        folder = cls(path)
        folder.config()
        return folder

    def config(self) -> dict[str, Any]:
        """config.json.  Raises RunError when it is missing, damaged or of another format."""
        config = read_json(self.path / "config.json")
        if config.get("format") != FORMAT:
            raise RunError(
                f"{self.path / 'config.json'}: format {config.get('format')!r}, this version reads {FORMAT}"
            )
        return config

    def recipe(self) -> Recipe[Any, Any]:
        """The recipe that config.json holds.  Raises RunError when it does not fit this version."""
        try:
            return from_dict(self.config()["recipe"])
        except RunError:
            raise
        except Exception as error:
            raise RunError(
                f"{self.path / 'config.json'}: not a recipe of this version: {error}"
            ) from error

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that is damaged, or was cut off by a kill, is left out."""
        if not self.metrics.exists():
            return []
        lines = []
        for text in self.metrics.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and all(
                    isinstance(line.get(key), kind) for key, kind in _LINE.items()
                ):
                    lines.append(line)
        return lines

    def truncate_history(self, step: int) -> list[dict[str, Any]]:
        """Forgets lines after ``step``: a resumed run writes them again.  Returns what is kept."""
        kept = [line for line in self.history() if line["step"] <= step]
        if cluster.first():
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def append_history(self, line: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl.  Raises OSError naming the file when it does not fit, and leaves no part of it."""
        if not cluster.first():
            return
        text = json.dumps(line).encode() + b"\n"
        with self.metrics.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                file.truncate(size)
                raise OSError(error.errno, error.strerror, str(self.metrics)) from error

    def write_data(self, dataset: Dataset, task: Task, scaling: Scaling | None) -> None:
        """data.json.  task: what the model learns of the data."""
        if not cluster.first():
            return
        shift, scale = scaling or Scaling(np.float32(0), np.float32(1))
        some = next(iter(dataset.tables.values()), {})
        inputs = some.get("inputs")
        inputs = inputs.get("image") if isinstance(inputs, dict) else inputs
        write_json(
            self.path / "data.json",
            {
                "name": dataset.name,
                "task": tasks.to_dict(task),
                "input_shape": None if inputs is None else list(inputs.shape[1:]),
                "input_range": list(dataset.input_range),
                "shift": np.asarray(shift).tolist(),
                "scale": np.asarray(scale).tolist(),
            },
        )

    def data(self) -> RunData:
        """data.json.  Raises RunError when it is missing, damaged or of another version."""
        data = read_json(self.path / "data.json")
        try:
            return RunData(
                data["name"],
                tasks.from_dict(data["task"]),
                Scaling(np.float32(data["shift"]), np.float32(data["scale"])),
                None if data["input_shape"] is None else tuple(data["input_shape"]),
                (float(data["input_range"][0]), float(data["input_range"][1])),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            why = f"not written by this version ({type(error).__name__}: {error})"
            raise RunError(
                f"{self.path / 'data.json'}: {why}; repeating the run's command writes it anew"
            ) from error


def load(run_dir: str | os.PathLike[str]) -> tuple[Model, Any, Params]:
    """(module, Config, params) of a run, from its best checkpoint.

    Raises RunError if this is no run folder, CheckpointError if no intact checkpoint is there.
    """
    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    state, _ = restore_best(folder, recipe)
    return module_of(recipe.model), recipe.model, state.params


def restore_best(
    folder: RunFolder, recipe: Recipe[Any, Any], say: Callable[[str], None] = warnings.warn
) -> tuple[TrainState, int]:
    """The best checkpoint's state and its step; damaged ones are named through ``say``.

    Raises CheckpointError if none is intact or one does not fit, RunError if the folder holds several runs, or one that was
    trained in another precision than is in force.
    """
    if len(recipe.members) > 1:
        raise RunError(
            f"{folder.path} holds {len(recipe.members)} runs, trained side by side; choose one: {', '.join(recipe.members)}"
        )
    folder.check_settings("JAX_ENABLE_X64")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        found = checkpoints.restore(abstract_state(recipe), best=True, say=say)
    if found is None:
        raise CheckpointError(f"{folder.checkpoints}: no checkpoint yet")
    return found


def abstract_state(recipe: Recipe[Any, Any]) -> Any:
    """Shapes and dtypes of the recipe's training state."""
    optimizer = recipe.optimizer.build(1, 1)
    module = module_of(recipe.model)
    return jax.eval_shape(
        lambda: init_state(
            module, recipe.model, optimizer, root_key(recipe.seed), recipe.batch_size
        )
    )


def versions() -> dict[str, str]:
    """What bit-for-bit repetition depends on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    ours = {"python": platform.python_version(), "purezoo": zoo.__version__}
    return ours | {name: importlib.metadata.version(name) for name in names}


def jax_settings() -> dict[str, Any]:
    """JAX's settings that a run's numbers depend on, named as environment variables, and the generator of its keys."""
    names = (
        "jax_enable_x64",
        "jax_threefry_partitionable",
        "jax_random_seed_offset",
        "jax_default_matmul_precision",
    )
    return {"generator": PRNG} | {name.upper(): getattr(jax.config, name) for name in names}


def _shown(setting: Any) -> Any:
    """As an environment variable has it."""
    return "not set" if setting is None else int(setting) if isinstance(setting, bool) else setting


def hardware() -> str:
    """One line: devices, processor, cores: "cpu x1, AMD EPYC, 2 cores"."""
    devices = jax.devices()
    processor = platform.processor() or platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{devices[0].device_kind} x{len(devices)}, {processor}, {os.cpu_count()} cores"


def today() -> str:
    """The date, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """A JSON object of ``write_json``.  Raises RunError naming the file when it is missing or damaged."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{file.parent}: no run here ({file.name} is missing)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{file}: unreadable: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{file}: expected a JSON object")
    recorded = value.pop(
        "crc32", None
    )  # absent in files of other programs, and of earlier versions
    if recorded not in (None, _crc32(value)):
        raise RunError(f"{file}: damaged, or changed by hand: its checksum differs")
    return value


def write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a checksum."""
    value = {
        key: entry for key, entry in value.items() if key != "crc32"
    }  # of a file that was read as it is
    write_text(file, json.dumps({**value, "crc32": _crc32(value)}, indent=2) + "\n")


def _crc32(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes a file atomically, as UTF-8: a kill, or a full disk, leaves the old or the new one.  Raises OSError naming the file.

    What is no text, such as a byte of a file's name that is not UTF-8, is escaped.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(text, "utf-8", "backslashreplace")
        os.replace(temporary, file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise


_NOT_COMPARED = (
    "recipe.about",
    "recipe.targets",
    "recipe.model.vocabulary",
    "recipe.model.source_vocabulary",
)
"""What decides no result, and what the data decide, whose fingerprint is compared."""


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Says of each difference of two JSON values: batch_size is 100 there and 128 here.  Keys are those of the first."""
    if path.replace("after.", "") in _NOT_COMPARED:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there and path)]:
            yield from differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif json.loads(json.dumps(there)) != json.loads(json.dumps(here)):
        yield f"{path.removeprefix('recipe.')} is {there!r} there and {here!r} here"
