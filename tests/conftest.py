"""Setup of every test: eight CPU devices, strict rank promotion, run-time checks of shapes."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

# Many tests and their subprocesses compile the same programs, so all workers share one cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="purezoo-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Tests spend most time in the compiler; they do not depend on its most expensive passes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Set before jax is used.  Eight devices, because the trainer must work with any number.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_parallel_codegen_split_count=1 --xla_force_host_platform_device_count=8"
    # The older emitters compile the small programs of tests in half the time.  Releases after 0.10
    # no longer have them, and XLA aborts the process, without a Python error, at an unknown flag.
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10.")
)
os.environ["JAX_PLATFORMS"] = "cpu"

import functools
from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

with install_import_hook(["zoo"], "beartype.beartype"):
    import zoo  # noqa: F401

from tests.helpers import runs
from train.engine.parallel import Parallel
from train.programs import clean

if "PYTEST_XDIST_WORKER" not in os.environ:  # only in the process that starts the workers
    clean(pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))

THOROUGH = bool(os.environ.get("PUREZOO_THOROUGH"))
"""Whether tests over models or random inputs run in full, as documented, or on fewer cases."""

KINDS = ("mlp", "convnet", "rbm", "rnnlm")
"""One model of each kind: dense, convolutional, with sampling, with a carry and tokens."""

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def _one_device() -> Iterator[None]:
    """Train on one device by default, because eight devices on two cores are slow.

    It has session scope, so that it also holds for module-scoped fixtures.
    """
    with pytest.MonkeyPatch.context() as patch:  # a separate one: tests undo theirs
        patch.setattr("train.engine.trainer.Parallel", functools.partial(Parallel, devices=1))
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Parameters, inputs and arithmetic in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A run of ``mlp-digits`` that all tests share: only to be read, so copy it to write there."""
    folder = runs.built_once(tmp_path_factory, "classifier", runs.classifier)
    before = runs.content(folder)
    yield folder
    assert runs.content(folder) == before, "a test changed the shared run; let it use a copy"
