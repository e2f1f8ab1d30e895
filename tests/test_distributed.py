"""Several real processes: the same run as in one, and a clear end for all if one fails."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.conftest import THOROUGH
from tests.test_trainer import trainer_state
from train.__main__ import main
from train.engine.cluster import Cluster
from train.engine.run_folder import RunFolder

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
RUN = ("mlp-digits", "--steps", "30", "--eval-every", "0.2", "--steps-per-dispatch", "2")
LONG = ("mlp-digits", "--epochs", "400", "--eval-every", "0.5", "--steps-per-dispatch", "4")

thorough = pytest.mark.skipif(
    not THOROUGH, reason="processes take long to start: with PUREZOO_THOROUGH=1"
)


def _environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """Starts ``count`` processes of one training, with output to files; kills them on exit."""

    def __init__(self, folder, count, *options, port=None, timeout=60, of=None, each=(), devices=1):
        self.logs = [
            folder / f"process-{index}-{time.monotonic_ns()}.log" for index in range(count)
        ]
        port = port or _free_port()
        self.all = []
        for index, log in enumerate(self.logs):
            where = (
                "--coordinator",
                f"127.0.0.1:{port}",
                "--num-processes",
                str(of or count),
                "--process-id",
                str(index),
            )
            command = [
                sys.executable,
                "-m",
                "train",
                *options,
                *where,
                "--timeout",
                str(timeout),
                *(each[index] if each else ()),
            ]
            with log.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        command, stdout=file, stderr=file, env=_environment(devices), cwd=folder
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.kill()
            process.wait()

    def wait(self, seconds=120):
        """Exit statuses; fails, with the processes' output, if one runs longer than the limit."""
        end = time.monotonic() + seconds
        for process in self.all:
            try:
                process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                pytest.fail(f"still running: {self.outputs()}")
        return [process.returncode for process in self.all]

    def outputs(self):
        return [log.read_text() for log in self.logs]

    def wait_for_steps(self, run, lines=2):
        end = time.monotonic() + 120
        while len(RunFolder(run).history()) < lines:
            assert time.monotonic() < end, self.outputs()
            assert all(process.poll() is None for process in self.all), self.outputs()
            time.sleep(0.05)


def _one(run, devices=1):
    """The run in this process."""
    assert main([*RUN, "--out", str(run), "--devices", str(devices), "--quiet"]) == 0


def _losses(run):
    return [(line["step"], line["split"], line["loss"]) for line in RunFolder(run).history()]


def _assert_same(run, other):
    for (*where, loss), (*there, expected) in zip(_losses(run), _losses(other), strict=True):
        assert where == there
        assert loss == pytest.approx(expected, rel=2e-4)
    state, expected = trainer_state(run), trainer_state(other)
    assert int(state.step) == int(expected.step)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    _one(run)
    return run


def test_two_processes_with_two_devices_equal_one_process(tmp_path, alone):
    with Processes(tmp_path, 2, *RUN, "--out", "run", "--accumulate", "2", devices=2) as processes:
        assert processes.wait() == [0, 0], processes.outputs()
    first, second = processes.outputs()
    assert "training on 4 devices of 2 processes (jit)" in first
    assert "mlp-digits" not in second, "only one process reports"
    _assert_same(tmp_path / "run", alone)


@thorough
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")
def test_four_processes_under_mpirun_equal_one(tmp_path, alone):
    mpirun = ["mpirun", "--oversubscribe", "-n", "4"] + ["--allow-run-as-root"] * (
        os.geteuid() == 0
    )
    command = [
        *mpirun,
        sys.executable,
        "-m",
        "train",
        *RUN,
        "--out",
        "run",
        "--distributed",
        "--parallel",
        "shard_map",
    ]
    done = subprocess.run(
        command, env=_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "training on 4 devices of 4 processes (shard_map)" in done.stdout
    _assert_same(tmp_path / "run", alone)


def test_preempted_run_resumes_on_another_number_of_processes(tmp_path, alone):
    """After SIGTERM to one of two processes both stop at the same step; four devices resume."""
    with Processes(tmp_path, 2, *RUN, "--out", "run") as processes:
        processes.wait_for_steps(tmp_path / "run")
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.wait() == [0, 0], processes.outputs()
    assert "stopped by SIGTERM" in processes.outputs()[0]
    assert 0 < int(trainer_state(tmp_path / "run").step) < 30
    _one(tmp_path / "run", devices=4)
    _assert_same(tmp_path / "run", alone)


def test_killed_process_ends_the_other_with_an_error(tmp_path):
    with Processes(tmp_path, 2, *LONG, "--out", "run", timeout=20) as processes:
        processes.wait_for_steps(tmp_path / "run")
        processes.all[1].kill()
        status, _ = processes.wait(60)
    assert status not in (0, None)
    assert "error: process 0: another process" in processes.outputs()[0]
    assert "Traceback" not in processes.outputs()[0]


@thorough
def test_hanging_process_ends_the_other_within_the_timeout(tmp_path):
    with Processes(tmp_path, 2, *LONG, "--out", "run", timeout=8) as processes:
        processes.wait_for_steps(tmp_path / "run", lines=14)
        processes.all[0].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        processes.all[1].wait(60)
        assert time.monotonic() - started < 20
    assert processes.all[1].returncode == 1
    assert "nothing happened for 8 s after" in processes.outputs()[1]


@thorough
def test_missing_process_or_wrong_address_is_an_error_within_the_timeout(tmp_path):
    started = time.monotonic()
    with Processes(tmp_path, 1, *RUN, "--out", "run", timeout=4, of=2) as processes:
        assert processes.wait(60) == [1]
    assert time.monotonic() - started < 40
    assert "error: not all 2 processes met at 127.0.0.1:" in processes.outputs()[0]
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_an_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Processes(
            tmp_path, 1, *RUN, port=taken.getsockname()[1], of=2, timeout=30
        ) as processes:
            assert processes.wait(60) == [1]
    assert "cannot listen on port" in processes.outputs()[0]
    assert "Traceback" not in processes.outputs()[0]


def test_processes_with_different_settings_all_report_it(tmp_path):
    options = ("mlp-digits", "--steps", "4", "--out", "run")
    with Processes(tmp_path, 2, *options, each=((), ("--batch-size", "32"))) as processes:
        assert processes.wait() == [1, 1]
    for output in processes.outputs():
        assert (
            "the processes want different runs: batch_size is 64 in process 0 and 32 in process 1"
            in output
        )
    assert not (tmp_path / "run").exists()


@thorough
def test_missing_or_different_data_in_one_process_stops_all(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(
            tmp_path / folder / "set.npz",
            inputs=rng.normal(size=(40, 64)),
            targets=rng.integers(0, 10, 40),
        )
    (tmp_path / "empty").mkdir()
    options = ("mlp-digits", "--steps", "4", "--data", "npz:set.npz", "--out", "run", "--data-dir")
    with Processes(
        tmp_path, 2, *options[:-1], each=(("--data-dir", "a"), ("--data-dir", "empty"))
    ) as processes:
        assert processes.wait() == [1, 1]
    assert "error: process 0: process 1: no such file" in processes.outputs()[0]
    assert "error: process 1: no such file" in processes.outputs()[1]
    with Processes(
        tmp_path, 2, *options[:-1], each=(("--data-dir", "a"), ("--data-dir", "b"))
    ) as processes:
        assert processes.wait() == [1, 1]
    assert all("data_fingerprint" in output for output in processes.outputs())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "localhost:80"}, "give all three"),
        (
            {"coordinator": "localhost", "processes": 2, "process": 0},
            "coordinator='localhost', allowed: HOST:PORT",
        ),
        (
            {"coordinator": "localhost:80", "processes": 2, "process": 2},
            "process-id=2, allowed: 0 to 1",
        ),
        ({"timeout": 0.0}, "timeout=0.0, allowed: at least 1 second"),
    ],
)
def test_wrong_settings_name_the_option(settings, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**settings)


def test_history_is_written_once(alone):
    steps = [
        (line["step"], line["split"])
        for line in map(json.loads, (alone / "metrics.jsonl").read_text().splitlines())
    ]
    assert len(steps) == len(set(steps))
