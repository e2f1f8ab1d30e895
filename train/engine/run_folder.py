"""The run folder: the files of a run, and how to load its model.

config.json     format version, complete recipe, fingerprint of the data, JAX settings, versions
data.json       task, shape, range and scaling of the inputs, for prediction without the data
metrics.jsonl   one JSON object per line: step, epoch, split, seconds, and the metrics
checkpoints/    see train.engine.checkpoint
lock            held while a process trains in this folder
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
    """A folder that is not a run folder, or belongs to another run."""


class RunData(NamedTuple):
    """Properties of the training data that prediction needs.

    task: the task that the model learned, see ``train.tasks``.
    input_shape: shape of one example or its image; None for inputs of several arrays without one.
    input_range: smallest and largest raw value.
    """

    name: str
    task: Task
    scaling: Scaling
    input_shape: tuple[int, ...] | None
    input_range: tuple[float, float]


class RunFolder:
    """Paths and small files of one run; use ``create`` or ``open``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"

    @classmethod
    def check(
        cls, path: str | os.PathLike[str], recipe: Recipe[Any, Any], fingerprint: str
    ) -> "RunFolder":
        """The folder of this run, which need not exist.

        Raises RunError naming the differences if it holds another run.
        """
        folder = cls(path)
        if not cluster.first():  # only the first process reads and writes the folder
            return folder
        if (folder.path / "config.json").exists():
            # Parsed as a recipe, so that settings unknown to an older version get their defaults.
            compared = {
                "recipe": to_dict(folder.recipe()),
                "data_fingerprint": folder.config()["data_fingerprint"],
            }
            different = list(
                differences(compared, {"recipe": to_dict(recipe), "data_fingerprint": fingerprint})
            )
            if different:
                raise RunError(
                    f"{folder.path} holds a run with another configuration: "
                    f"{'; '.join(different)}.  "
                    "Choose another folder with --out, or repeat the same options to resume"
                )
            folder.check_settings(*jax_settings())
        elif folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise RunError(
                f"{folder.path} is not empty and holds no config.json of a run; "
                "choose another folder with --out"
            )
        return folder

    def require_writable(self) -> None:
        """Raises RunError unless the user may write to the folder or create it."""
        if cluster.first() and not may_write(self.path):
            raise RunError(f"{self.path}: no right to write here; choose another folder with --out")

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], recipe: Recipe[Any, Any], fingerprint: str
    ) -> "RunFolder":
        """Creates the folder unless this run has one; raises like ``check``."""
        folder = cls.check(path, recipe, fingerprint)
        file = folder.path / "config.json"
        if cluster.first() and not file.exists():
            config = {"format": FORMAT, "recipe": to_dict(recipe), "data_fingerprint": fingerprint}
            config |= {"jax": jax_settings(), "versions": versions()}
            json.dumps(
                config
            )  # raises before creating a folder if a user's Config is not serialisable
            created = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
                write_json(file, config)
            except BaseException:
                with contextlib.suppress(OSError):
                    for path in created:
                        path.rmdir()
                raise
        return folder

    def check_settings(self, *names: str) -> None:
        """Raises RunError if one of these ``jax_settings`` differs from the recorded one."""
        recorded, current = self.config().get("jax", {}), jax_settings()
        for name in names:
            if name in recorded and recorded[name] != current[name]:
                was, now = map(_shown, (recorded[name], current[name]))
                raise RunError(
                    f"{self.path}: {name} was {was} when the run was begun, and is {now} here; "
                    "set it as it was"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Prevents other processes from training in this folder.

        The system releases the lock whenever the process ends.
        """
        if not cluster.first():
            yield
            return
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{self.path}: another process is training here; "
                    "wait for it, or choose another folder"
                ) from None
            yield

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """The folder of an existing run.  Raises RunError if there is none."""
        folder = cls(path)
        folder.config()
        return folder

    def config(self) -> dict[str, Any]:
        """The content of config.json.  Raises RunError if missing, damaged or of another format."""
        config = read_json(self.path / "config.json")
        if config.get("format") != FORMAT:
            raise RunError(
                f"{self.path / 'config.json'}: format {config.get('format')!r}, "
                f"this version reads {FORMAT}"
            )
        return config

    def recipe(self) -> Recipe[Any, Any]:
        """The recipe in config.json.  Raises RunError if it does not fit this version."""
        try:
            return from_dict(self.config()["recipe"])
        except RunError:
            raise
        except Exception as error:
            raise RunError(
                f"{self.path / 'config.json'}: not a recipe of this version: {error}"
            ) from error

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without damaged or truncated ones."""
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
        """Deletes lines after ``step``, which a resumed run writes again.  Returns the others."""
        kept = [line for line in self.history() if line["step"] <= step]
        if cluster.first():
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def append_history(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl.

        Raises OSError naming the file if the write fails, and then leaves no partial line.
        """
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
        """Writes data.json.  task: the task that the model learns from the data."""
        if not cluster.first():
            return
        shift, scale = scaling or Scaling(np.float32(0), np.float32(1))
        table = next(iter(dataset.tables.values()), {})
        inputs = table.get("inputs")
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
        """The content of data.json.  Raises RunError if missing, damaged or of another version."""
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
    """(module, Config, params) of a run's best checkpoint.

    Raises RunError if this is not a run folder, CheckpointError if it has no intact checkpoint.
    """
    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    state, _ = restore_best(folder, recipe)
    return module_of(recipe.model), recipe.model, state.params


def restore_best(
    folder: RunFolder, recipe: Recipe[Any, Any], say: Callable[[str], None] = warnings.warn
) -> tuple[TrainState, int]:
    """State and step of the best checkpoint; damaged ones are reported through ``say``.

    Raises CheckpointError if none is intact or one does not fit, RunError if the folder holds
    several runs, or a run trained in another precision than the current one.
    """
    if len(recipe.members) > 1:
        raise RunError(
            f"{folder.path} holds {len(recipe.members)} runs, trained side by side; "
            f"choose one: {', '.join(recipe.members)}"
        )
    folder.check_settings("JAX_ENABLE_X64")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract_state(recipe), best=True, say=say)
    if restored is None:
        raise CheckpointError(f"{folder.checkpoints}: no checkpoint yet")
    return restored


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
    """The versions that bitwise reproducibility depends on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    ours = {"python": platform.python_version(), "purezoo": zoo.__version__}
    return ours | {name: importlib.metadata.version(name) for name in names}


def jax_settings() -> dict[str, Any]:
    """The random generator, and JAX settings that affect results, by environment variable."""
    names = (
        "jax_enable_x64",
        "jax_threefry_partitionable",
        "jax_random_seed_offset",
        "jax_default_matmul_precision",
    )
    return {"generator": PRNG} | {name.upper(): getattr(jax.config, name) for name in names}


def _shown(setting: Any) -> Any:
    """The setting in the notation of an environment variable."""
    return "not set" if setting is None else int(setting) if isinstance(setting, bool) else setting


def hardware() -> str:
    """Devices, processor and cores in one line: "cpu x1, AMD EPYC, 2 cores"."""
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
    """The UTC date in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object written by ``write_json``.  Raises RunError if missing or damaged."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{file.parent}: no run here ({file.name} is missing)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{file}: unreadable: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{file}: expected a JSON object")
    recorded = value.pop("crc32", None)  # absent in files of other programs and earlier versions
    if recorded not in (None, _crc32(value)):
        raise RunError(f"{file}: damaged, or changed by hand: its checksum differs")
    return value


def write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a checksum."""
    value = {
        key: entry for key, entry in value.items() if key != "crc32"
    }  # drop a checksum read from a file
    write_text(file, json.dumps({**value, "crc32": _crc32(value)}, indent=2) + "\n")


def _crc32(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes a UTF-8 file atomically: a kill or full disk leaves either the old or the new file.

    Characters that cannot be encoded, such as invalid bytes in file names, are escaped.
    Raises OSError naming the file.
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
"""Fields that do not affect results, or that depend on the data, whose fingerprint is compared."""


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Describes the differences of two JSON values, e.g. "batch_size is 100 there and 128 here".

    At the top level, only keys of ``there`` are compared.
    """
    if path.replace("after.", "") in _NOT_COMPARED:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there and path)]:
            yield from differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif json.loads(json.dumps(there)) != json.loads(json.dumps(here)):
        field = path.removeprefix("recipe.")
        yield f"{field} is {_show(there)} there and {_show(here)} here"


def _show(value: Any) -> str:
    """A JSON value for a message; tuples look like the lists that are stored."""
    return "not set" if value is None else repr(json.loads(json.dumps(value)))
