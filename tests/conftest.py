"""What every test runs under: eight CPU devices, strict rank promotion, and shapes in signatures checked at run time."""

import os

# Before jax is used.  The trainer must work whatever the number of devices is.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

with install_import_hook(["zoo", "train"], "beartype.beartype"):
    import zoo  # noqa: F401

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64() -> Iterator[None]:
    """Parameters, inputs and arithmetic in float64."""
    with jax.enable_x64(True):
        yield
