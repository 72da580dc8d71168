"""Opens a graph in ONNX Runtime as a server needs it, and runs it on memory at fixed addresses."""

import logging
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime as ort

from enginehouse_server.errors import DeviceError, DeviceLostError, PlanMismatchError

from .device import CUDA
from .elements import ELEMENTS
from .place import Place

__all__ = ["BoundSession", "open_session"]

_log = logging.getLogger(__name__)
# Of log severities: it warns of what is meant, and what is only tried may fail.
_ERRORS, _FATAL = 3, 4
_NOT_CAPTURED = -1  # of graph ids


class BoundSession:
    """A session with its inputs and outputs bound. One thread runs it.

    Attributes:
        inputs: Types of the inputs, by name.
        outputs: Types of the outputs, by name, in their order.
        has_graphs: Whether runs can be captured once and replayed.
    """

    def __init__(self, session: ort.InferenceSession, place: Place, *, has_graphs: bool) -> None:
        self._session, self._place, self.has_graphs = session, place, has_graphs
        self.inputs = {i.name: ELEMENTS[i.type] for i in session.get_inputs()}
        self.outputs = {o.name: ELEMENTS[o.type] for o in session.get_outputs()}
        self._binding = session.io_binding()
        self._options: dict[int, ort.RunOptions] = {}
        self._captured: set[int] = set()  # numbers of graphs that ran
        self._uncaptured: set[int] = set()  # and of those that could not be captured

    def width_of(self, output: str) -> int | None:
        """The last dimension of an output; None if only a run would tell."""
        [found] = [o for o in self._session.get_outputs() if o.name == output]
        return found.shape[-1] if isinstance(found.shape[-1], int) else None

    def another(self) -> "BoundSession":
        """The same session with bindings of its own."""
        return BoundSession(self._session, self._place, has_graphs=self.has_graphs)

    def bind_input(
        self, name: str, shape: tuple[int, ...], address: int, *, on_host: bool = False
    ) -> None:
        """Lets the session read a tensor of its own type where it is."""
        kind = "cpu" if on_host else self._place.device_type
        self._binding.bind_input(name, kind, 0, self.inputs[name].onnx, shape, address)

    def bind_output(self, name: str, shape: tuple[int, ...], address: int) -> None:
        """Lets the session write a tensor of its own type where it is."""
        kind, element = self._place.device_type, self.outputs[name]
        self._binding.bind_output(name, kind, 0, element.onnx, shape, address)

    def run(self, what: str, graph: int | None = None) -> None:
        """Computes, or on a GPU begins to.

        Args:
            what: Names the work in an error.
            graph: Number of a captured graph, the same for every run of these shapes and
                addresses; None to launch one by one.

        Raises:
            DeviceError: It failed.
        """
        captures = graph is not None and self.has_graphs and graph not in self._uncaptured
        number = graph if captures and graph is not None else _NOT_CAPTURED
        try:
            self._run(number, what)
        except DeviceError as error:
            if number in (_NOT_CAPTURED, *self._captured) or isinstance(error, DeviceLostError):
                raise
            # One warning for them all: there may be a graph for each of hundreds of batch sizes.
            level = logging.DEBUG if self._uncaptured else logging.WARNING
            _log.log(
                level, "%s is launched piece by piece: it cannot be captured (%s)", what, error
            )
            self._uncaptured.add(number)
            self._run(_NOT_CAPTURED, what)
        else:
            self._captured.add(number)

    def _run(self, graph: int, what: str) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options_of(graph))
        except Exception as error:  # it has a class for every kind, none in common
            raise self._place.failure(error, what) from error

    def _options_of(self, graph: int) -> ort.RunOptions | None:
        if self._place.gpu is None:
            return None
        if graph not in self._options:
            options = self._options[graph] = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(graph))
            # It would keep a processor busy until the GPU is done; whoever needs that waits asleep.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return self._options[graph]


def open_session(
    file: Path, num_threads: int, place: Place, graph: bytes | None = None, *, captures: bool = True
) -> BoundSession:
    """Loads a graph: seconds, and about the size of the weights in memory.

    Args:
        file: The graph, its weights beside it.
        num_threads: Processor threads of one run, the one that calls it included.
        place: Where it computes.
        graph: What to load in the file's place, its weights where the file's are.
        captures: Whether runs are to be captured where the place can.

    Raises:
        PlanMismatchError: ONNX Runtime cannot read the graph, or not compute there.
    """
    settings = dict(place.options)
    if place.has_graphs and captures:
        try:
            captured = settings | {"enable_cuda_graph": "1"}
            made = _open(file, num_threads, place, graph, captured, severity=_FATAL)
        except PlanMismatchError as error:
            # Every node would have to be the GPU's. Anything else fails once more, and is told.
            _log.warning("%s runs without CUDA graphs, and slower: %s", file, error)
        else:
            return BoundSession(made, place, has_graphs=True)
    return BoundSession(_open(file, num_threads, place, graph, settings), place, has_graphs=False)


def _open(
    file: Path,
    num_threads: int,
    place: Place,
    graph: bytes | None,
    settings: Mapping[str, str],
    severity: int = _ERRORS,
) -> ort.InferenceSession:
    ort.set_default_logger_severity(_ERRORS)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = severity
    # Shapes vary: a plan of memory for each would only be made and thrown away.
    options.enable_mem_pattern = False
    # Threads that wait take more of a processor than those that compute, unless they may sleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    folder = str(file.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if place.provider == CUDA:
        with redirect_stdout(sys.stderr):  # it prints what it misses
            ort.preload_dlls()
    providers = list(dict.fromkeys([place.provider, "CPUExecutionProvider"]))
    try:
        session = ort.InferenceSession(
            str(file) if graph is None else graph,
            options,
            providers=providers,
            provider_options=[dict(settings) if p == place.provider else {} for p in providers],
            disabled_optimizers=list(place.without),
        )
    except Exception as error:  # it has a class for every kind, none in common
        if isinstance(failure := place.failure(error, "a load"), DeviceLostError):
            raise failure from error
        raise PlanMismatchError(f"ONNX Runtime cannot load {file}: {error}") from error
    if session.get_providers()[0] != place.provider:
        raise PlanMismatchError(
            f"ONNX Runtime cannot start its {place.provider}, most likely as libraries of CUDA 13 "
            "or cuDNN 9 are missing or the driver is older than they need: pip install "
            "'enginehouse[cuda]', and see docs/gpu.md"
        )
    return session
