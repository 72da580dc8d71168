"""Runs a plan with its copies on one stream; what comes again and again, as a CUDA graph.

A graph is one launch instead of hundreds. It keeps the shapes, the addresses, the profile and the
context that it was captured with, so each has a context of its own, and is found by all of these.
The first run is enqueued as it is, since TensorRT leaves work for it to do; the second is captured.
"""

import logging
from typing import NamedTuple

from enginehouse_server.engine.cuda import CudaBuffer, CudaDevice, CudaGraph
from enginehouse_server.errors import DeviceError, DeviceLostError, UnsupportedError

from .context import Binding, PlanContext
from .runtime import LoadedPlan

__all__ = ["Copy", "Runner", "Work"]

_log = logging.getLogger(__name__)


class Copy(NamedTuple):
    """A copy between pinned memory of the host and the device, either way."""

    on_device: int
    on_host: int
    num_bytes: int


class Work(NamedTuple):
    """Inputs to the device, a run, outputs to the host; it names a graph wholly."""

    binding: Binding
    inputs: tuple[Copy, ...]
    outputs: tuple[Copy, ...]


class _Captured(NamedTuple):
    graph: CudaGraph
    context: PlanContext  # stays as it was bound, as long as the graph


class Runner:
    """A stream, and contexts that share one memory on it: they never run at once.

    Attributes:
        stream: On which all is enqueued.
    """

    def __init__(
        self, plan: LoadedPlan, device: CudaDevice, activations: CudaBuffer, max_graphs: int
    ) -> None:
        """Makes the stream.

        Args:
            plan: To run.
            device: Where it is.
            activations: Memory to work in, this runner's alone.
            max_graphs: How many to keep; 0 for none.
        """
        self._plan, self._device, self._activations = plan, device, activations
        self.stream = device.stream()
        self._contexts: dict[int, PlanContext] = {}  # by profile, of what is not captured
        self._warm: dict[Work, PlanContext] = {}  # of what ran once
        self._captured: dict[Work, _Captured] = {}
        self._max_graphs = max_graphs
        if max_graphs and not device.info.has_graphs:
            self._do_without(f"{device.info.binding} has none")

    @property
    def num_graphs(self) -> int:
        """Graphs that are kept."""
        return len(self._captured)

    def run(self, work: Work, *, recurs: bool) -> None:
        """Enqueues a work.

        Args:
            work: What to do.
            recurs: Whether it is worth a graph.

        Raises:
            DeviceError: The runtime refused it.
        """
        if (captured := self._captured.get(work)) is not None:
            captured.graph.launch(self.stream)
        elif (context := self._warm.pop(work, None)) is not None:
            self._capture(work, context)
        elif recurs and len(self._warm) + len(self._captured) < self._max_graphs:
            context = self._new_context()
            self._enqueue(work, context)
            self._warm[work] = context
        else:
            self._enqueue(work, self._common_context(work.binding.profile))

    def close(self) -> None:
        """Waits for what is enqueued, and releases graphs and contexts."""
        try:
            self.stream.synchronize()
        finally:
            for captured in self._captured.values():
                captured.graph.close()
            self._captured.clear()
            self._warm.clear()
            self._contexts.clear()

    def _capture(self, work: Work, context: PlanContext) -> None:
        context.bind(work.binding, self.stream)
        if not context.is_capturable(self.stream):
            self._do_without("its runtime says that it cannot be captured; build it again")
            self._run_last(work, context)
            return
        try:
            graph = self._device.capture(self.stream, lambda: self._enqueue(work, context))
        except DeviceLostError:
            raise
        except (DeviceError, UnsupportedError) as error:
            self._do_without(str(error))
            self._run_last(work, context)
            return
        self._captured[work] = _Captured(graph, context)
        graph.launch(self.stream)

    def _run_last(self, work: Work, context: PlanContext) -> None:
        """Runs with a context that is used once more: it must outlive the run."""
        self._enqueue(work, context)
        self.stream.synchronize()

    def _enqueue(self, work: Work, context: PlanContext) -> None:
        context.bind(work.binding, self.stream)
        for on_device, on_host, num_bytes in work.inputs:
            self._device.copy_to_device(on_device, on_host, num_bytes, self.stream)
        context.enqueue(self.stream)
        for on_device, on_host, num_bytes in work.outputs:
            self._device.copy_to_host(on_host, on_device, num_bytes, self.stream)

    def _common_context(self, profile: int) -> PlanContext:
        if profile not in self._contexts:
            self._contexts[profile] = self._new_context()
        return self._contexts[profile]

    def _new_context(self) -> PlanContext:
        context = self._plan.context()
        context.use_memory(self._activations.address, self._activations.num_bytes)
        return context

    def _do_without(self, reason: str) -> None:
        """From now on nothing is captured; what was before goes on."""
        self._max_graphs = 0
        self.stream.synchronize()  # a context must outlive its run
        self._warm.clear()
        _log.warning("%s runs without CUDA graphs: %s", self._plan.file.name, reason)
