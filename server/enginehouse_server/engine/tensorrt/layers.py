"""What TensorRT's engine inspector says of a plan's layers, kept where the plan first runs.

Fusions, formats and kernels are chosen when a plan is compiled, and with TensorRT for RTX where it
runs: this is the place to look why a plan is slow, and nothing computes from it.
"""

import logging
from pathlib import Path
from types import ModuleType

from enginehouse_server.engine.whole_file import replace_file

from .flavour import Handle

__all__ = ["keep_layers"]

_log = logging.getLogger(__name__)


def keep_layers(engine: Handle, trt: ModuleType, file: Path) -> None:
    """Writes the layers as JSON, as the inspector gives them, if there is no such file.

    Of what keeps it from being written a line is logged; the plan serves without.

    Args:
        engine: TensorRT's own.
        trt: Its module.
        file: To write; its folder is made.
    """
    if file.exists():
        return
    inspector = engine.create_engine_inspector()
    if inspector is None:
        _log.warning("%s is not written: TensorRT gives no engine inspector", file)
        return
    told = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    if not told.strip():
        _log.warning("%s is not written: TensorRT's engine inspector says nothing", file)
        return
    try:
        replace_file(file, (told.encode(),))
    except OSError as fault:
        _log.warning(
            "%s cannot be written (%s): name another folder with --state-dir", file, fault.strerror
        )
        return
    _log.info("%s: the engine inspector's words on the plan's layers", file)
