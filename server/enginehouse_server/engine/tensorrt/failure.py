"""The error for a call of TensorRT that says no more than that it failed; and what outlives one."""

from collections.abc import Callable
from contextlib import ExitStack, suppress

from enginehouse_server.engine.cuda.errors import device_error
from enginehouse_server.errors import DeviceError

from .flavour import Handle

__all__ = ["failed", "release_with"]


def failed(complaints: Handle, doing: str) -> DeviceError:
    """The error, with what the runtime complained of; DeviceLostError if the device is lost.

    Args:
        complaints: Of the runtime.
        doing: What failed, for example "enqueuing a run of the plan".
    """
    return device_error(RuntimeError(complaints.last()), doing)


def release_with(stack: ExitStack, release: Callable[[], None]) -> None:
    """Lets a stack call what releases something, whatever the device has come to.

    The memory of a lost device goes with the process, and its loss was told of by what computed.
    """

    def quietly() -> None:
        with suppress(DeviceError):
            release()

    stack.callback(quietly)
