"""How the loop hands work to the device, and reads from it what it measured, without making it wait."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.engine.cluster import Watchdog
from train.engine.parallel import Layout

IN_FLIGHT = 8
"""Dispatches before the host waits for the oldest.

With several CPU devices, a loop that never waits deadlocks.
"""


class Dispatcher:
    """Runs compiled steps, a few dispatches ahead of the device.

    steps: of ``Layout.steps``.  key: the root key on the devices.
    make_plan: (first step, number of steps) -> their entries on the devices.
    ahead: steps that are planned at once.
    """

    def __init__(
        self,
        steps: Callable,
        key: Any,
        layout: Layout,
        make_plan: Callable[[int, int], Any],
        ahead: int,
        watchdog: Watchdog,
    ) -> None:
        self._steps, self._key, self._layout, self._watchdog = steps, key, layout, watchdog
        self._make_plan, self._ahead = make_plan, ahead
        self._plan: Any = None
        self._planned_to = 0
        self._counts: dict[int, Any] = {}
        self._flying: collections.deque[tuple[int, Any]] = collections.deque()

    def __call__(
        self, state: Any, sums: Any, arrays: Any, step: int, count: int
    ) -> tuple[Any, Any]:
        """The state and the summed metrics after ``count`` steps from ``step`` on, not waited for."""
        if self._plan is None or step + count > self._planned_to:
            first = self._layout.replicate(np.int32(step))
            self._plan = self._make_plan(step, self._ahead), first
            self._planned_to = step + self._ahead
        # On the device once: every array from the host costs a dispatch some 10 us.
        if count not in self._counts:
            self._counts[count] = self._layout.replicate(np.int32(count))
        state, sums = self._steps(state, sums, arrays, self._plan, self._counts[count], self._key)
        self._flying.append((step + count, sums))
        if len(self._flying) > IN_FLIGHT:
            finished, oldest = self._flying.popleft()
            jax.block_until_ready(oldest)
            self._watchdog.beat(f"step {finished}")
        return state, sums


class LateReader:
    """Metrics summed up since they were last read.

    They are read one dispatch late, so that the device never waits for the host.
    read: (step, sums) -> None.
    """

    def __init__(self, zeros: Any, read: Callable[[int, Any], None]) -> None:
        self.sums = self._zeros = zeros
        self._read = read
        self._due: tuple[int, Any] | None = None

    def close(self, step: int) -> None:
        """Ends a sum, which the next ``read`` reads; nothing where one waits already."""
        if self._due is None:
            self._due, self.sums = (step, self.sums), self._zeros

    def read(self) -> None:
        """Reads the sum that was closed before, if there is one."""
        if self._due is not None:
            due, self._due = self._due, None
            self._read(*due)
