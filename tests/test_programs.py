"""Compiled programs that are kept for the next start."""

import os
import pathlib
import subprocess
import sys
import zlib

import pytest

from train.programs import clean

ROOT = pathlib.Path(__file__).parents[1]


def _program(folder, name, data=None, used=None):
    file = folder / f"jit_{name}-cache"
    file.write_bytes(zlib.compress(os.urandom(1000)) if data is None else data)
    if used is not None:
        os.utime(file, (used, used))
    return file


def test_truncated_programs_are_removed_at_start(tmp_path):
    whole = _program(tmp_path, "whole")
    cut = [
        _program(tmp_path, f"cut{length}", whole.read_bytes()[:length])
        for length in (0, 1, 2, 500, 1000)
    ]
    clean(tmp_path)
    assert whole.exists()
    assert not any(file.exists() for file in cut)


def test_cache_folder_is_created(tmp_path):
    clean(tmp_path / "of" / "programs")
    assert (tmp_path / "of" / "programs").is_dir()


def test_cleaning_reads_only_new_programs(tmp_path, monkeypatch):
    _program(tmp_path, "old", used=1e9)
    clean(tmp_path)
    new = _program(tmp_path, "new")
    read, original = [], pathlib.Path.read_bytes
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda file: (read.append(file), original(file))[1]
    )
    clean(tmp_path)
    assert read == [new]


def test_cache_evicts_least_recently_used_programs(tmp_path):
    files = [_program(tmp_path, str(age), used=1e9 - age) for age in range(5)]
    clean(tmp_path, largest=2 * files[0].stat().st_size)
    assert [file.exists() for file in files] == [True, True, False, False, False]


COUNT = """
import sys
import jax
from train.programs import keep_programs
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
keep_programs()
jax.jit(lambda x: x * 2 + 1)(1.0)
print(sum(name == "/jax/compilation_cache/cache_hits" for name in events))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_second_start_uses_the_cache_silently(tmp_path, damaged):
    kept = [name for name in os.environ if name.startswith(("JAX_", "XLA_"))]
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment |= {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }

    def start():
        done = subprocess.run(
            [sys.executable, "-c", COUNT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return int(done.stdout)

    assert start() == 0
    programs = list(tmp_path.rglob("*-cache"))
    assert programs
    if damaged:
        for file in programs:
            file.write_bytes(file.read_bytes()[:-10])
        assert start() == 0
    assert start() == len(programs)
