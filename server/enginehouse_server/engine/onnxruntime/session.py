"""Opens a graph in ONNX Runtime, as a server needs it: quiet, and asleep when it is idle."""

from pathlib import Path

import onnxruntime as ort

from enginehouse_server.errors import PlanMismatchError

__all__ = ["open_session"]

_ERRORS = 3  # of log severities: it warns of what is meant


def open_session(file: Path, num_threads: int, graph: bytes | None = None) -> ort.InferenceSession:
    """Loads a graph: seconds, and about the size of the weights in memory.

    Args:
        file: The graph, its weights beside it.
        num_threads: Processor threads of one run, the one that calls it included.
        graph: What to load in the file's place, its weights where the file's are.

    Raises:
        PlanMismatchError: ONNX Runtime cannot read the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    # Shapes vary: a plan of memory for each would only be made and thrown away.
    options.enable_mem_pattern = False
    # Threads that wait take more of a processor than those that compute, unless they may sleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    folder = str(file.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return ort.InferenceSession(
            str(file) if graph is None else graph, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # it has a class for every kind, none in common
        raise PlanMismatchError(f"ONNX Runtime cannot load {file}: {error}") from error
