"""What can go wrong, as one tree; rpc/status.py maps each to a gRPC status code.

    EnginehouseError
    ├── InvalidRequestError      the request itself is wrong: fix it
    ├── ModelNotFoundError       no model of that name and version
    ├── NotReadyError            loading or draining: retry later or elsewhere
    ├── OverloadedError          a queue is full: back off
    ├── DeadlineError            expired before an engine took it
    ├── UnsupportedError         this build or machine cannot do that
    ├── DeviceError              the device failed while computing
    │   └── DeviceLostError      and cannot compute again in this process: it has to be restarted
    └── UnloadableError          a model of the repository cannot be served
        ├── RepositoryError      its files are missing, damaged or of another manifest version
        ├── PlanMismatchError    its engine does not run on this machine
        └── ProbeError           its engine answers otherwise here than where it was certified

A message names what was wrong, the value, the limit and the remedy.
"""

__all__ = [
    "DeadlineError",
    "DeviceError",
    "DeviceLostError",
    "EnginehouseError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "NotReadyError",
    "OverloadedError",
    "PlanMismatchError",
    "ProbeError",
    "RepositoryError",
    "UnloadableError",
    "UnsupportedError",
]


class EnginehouseError(Exception):
    """Root of every error that a caller or an operator is told of."""


class InvalidRequestError(EnginehouseError):
    """A request that can never succeed as it is.

    Attributes:
        field: Path of the field at fault, for example "inputs[2].text"; empty if there is none.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ModelNotFoundError(EnginehouseError):
    """There is no model of that name and version."""


class NotReadyError(EnginehouseError):
    """The model exists but does not answer now."""


class OverloadedError(EnginehouseError):
    """A bound on waiting work was reached.

    Attributes:
        retry_after_s: When it is worth trying again, seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(EnginehouseError):
    """The request's deadline passed, or would pass, before its turn."""


class UnsupportedError(EnginehouseError):
    """Something that this build, or this machine, cannot do."""


class DeviceError(EnginehouseError):
    """The device or its runtime failed while computing a batch."""


class DeviceLostError(DeviceError):
    """The device's context is lost: nothing computes on it again until the process restarts."""


class UnloadableError(EnginehouseError):
    """A model that cannot be served; the others are not affected."""


class RepositoryError(UnloadableError):
    """Files of a version are missing, damaged, or of another manifest version."""


class PlanMismatchError(UnloadableError):
    """The engine needs something that this machine does not have."""


class ProbeError(UnloadableError):
    """The engine loaded, but does not give the answers that it was certified with."""
