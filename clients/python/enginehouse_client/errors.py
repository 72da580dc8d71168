"""What a call can fail with, as one tree; the names are those of the server's own errors.

    EnginehouseError
    ├── InvalidRequestError      the request itself is wrong: fix it
    ├── ModelNotFoundError       no model of that name and version
    ├── NotReadyError            loading or draining: retry later or elsewhere
    ├── OverloadedError          a queue is full: back off
    ├── DeadlineError            no answer in time
    ├── UnsupportedError         that server cannot do this
    ├── DeviceError              the device failed while computing
    │   └── DeviceLostError      and that server ends: ask another
    ├── UnloadableError          a model of the repository cannot be served
    │   ├── RepositoryError      its files are missing or damaged
    │   ├── PlanMismatchError    its engine does not run on that machine
    │   └── ProbeError           its engine answers otherwise there than where it was certified
    ├── ConnectionFailedError    no server was reached, or the connection broke
    └── InternalError            a fault of the server: report it with the request's id

What the tree does not name, such as a proxy's refusal, is raised as the root with its code.
"""

import grpc

__all__ = [
    "ConnectionFailedError",
    "DeadlineError",
    "DeviceError",
    "DeviceLostError",
    "EnginehouseError",
    "InternalError",
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
    """Root of everything that a call can fail with.

    Attributes:
        code: The status of the gRPC call, or of the request on its stream.
        request_id: Id of the request, as the server's logs have it.
        field: Path of the field at fault, for example "inputs[2].text"; empty if there is none.
        retry_after_s: When the server said that it is worth trying again; None if it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        request_id: str = "",
        field: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequestError(EnginehouseError):
    """A request that can never succeed as it is; `field` says what of it is wrong."""


class ModelNotFoundError(EnginehouseError):
    """There is no model of that name and version."""


class NotReadyError(EnginehouseError):
    """The model exists but does not answer now."""


class OverloadedError(EnginehouseError):
    """The server has all the work it will hold; `retry_after_s` says when to come back."""


class DeadlineError(EnginehouseError):
    """The time given to the call was used up, or could not have sufficed."""


class UnsupportedError(EnginehouseError):
    """Something that this server, or its machine, cannot do."""


class DeviceError(EnginehouseError):
    """The server's device or its runtime failed while computing."""


class DeviceLostError(DeviceError):
    """The server's device is lost, or its engine hangs; that server ends."""


class UnloadableError(EnginehouseError):
    """The model cannot be served; the others are not affected."""


class RepositoryError(UnloadableError):
    """Files of the model's version are missing, damaged, or of another manifest version."""


class PlanMismatchError(UnloadableError):
    """The model's engine needs something that the server's machine does not have."""


class ProbeError(UnloadableError):
    """The model's engine loaded, but does not give the answers that it was certified with."""


class ConnectionFailedError(EnginehouseError):
    """No server was reached, or the connection broke before the answer."""


class InternalError(EnginehouseError):
    """A fault inside the server; its log has the cause under `request_id`."""
