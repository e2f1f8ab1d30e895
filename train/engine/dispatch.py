"""Dispatches steps to the device and reads their metrics without making the device wait."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.engine.cluster import Watchdog
from train.engine.parallel import Layout

IN_FLIGHT = 8
"""Number of dispatches in flight before the host waits for the oldest.

With several CPU devices, a loop that never waits deadlocks.
"""


class Dispatcher:
    """Runs compiled steps, a few dispatches ahead of the device.

    steps: from ``Layout.steps``.  key: the root key on the devices.
    make_plan: (first step, number of steps) -> their plan entries on the devices.
    ahead: number of steps per plan.
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
        """State and summed metrics after ``count`` steps starting at ``step``; does not block."""
        if self._plan is None or step + count > self._planned_to:
            first = self._layout.replicate(np.int32(step))
            self._plan = self._make_plan(step, self._ahead), first
            self._planned_to = step + self._ahead
        # Counts are cached on the device: each array from the host adds about 10 us per dispatch.
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
    """Sums metrics, and reads each sum a dispatch late so that the device never waits for the host.

    read: (step, sums) -> None.
    """

    def __init__(self, zeros: Any, read: Callable[[int, Any], None]) -> None:
        self.sums = self._zeros = zeros
        self._read = read
        self._due: tuple[int, Any] | None = None

    def close(self, step: int) -> None:
        """Ends the current sum, for the next ``read``; does nothing if one is already waiting."""
        if self._due is None:
            self._due, self.sums = (step, self.sums), self._zeros

    def read(self) -> None:
        """Reads the last closed sum, if there is one."""
        if self._due is not None:
            due, self._due = self._due, None
            self._read(*due)
