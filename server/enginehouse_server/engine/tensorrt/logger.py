"""What TensorRT says goes to the log, the last complaints into the errors, a size to who asks."""

import logging
import re
from collections import deque
from types import ModuleType

from .flavour import Handle

__all__ = ["Complaints"]

_log = logging.getLogger("enginehouse_server.engine.tensorrt")
_KEPT = 2
# Said of every profile of a plan that is compiled, also without a GPU.
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


class Complaints:
    """Makes loggers of a binding's own kind."""

    @staticmethod
    def of(trt: ModuleType, level: int = logging.ERROR) -> Handle:
        """A logger with `last()`, the latest errors in words, and `activation_bytes`.

        The latter is what a context of a compiled plan works in, in the profile that takes the
        most, as the compiler said; 0 if it did not.

        Args:
            trt: The binding.
            level: At which errors are logged. A compiler without a GPU complains of that, and goes
                on; what makes it fail is in its exception.
        """
        errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self._errors: deque[str] = deque(maxlen=_KEPT)
                self.activation_bytes = 0

            def log(self, severity: Handle, text: str) -> None:
                if severity in errors:
                    self._errors.append(text)
                elif found := _ACTIVATIONS.fullmatch(text):
                    self.activation_bytes = max(self.activation_bytes, int(found[1]))
                # Warnings are mostly of what is meant.
                _log.log(level if severity in errors else logging.DEBUG, "%s", text)

            def last(self) -> str:
                """The latest errors."""
                return "; ".join(self._errors) or "it did not say why"

        return Logger()
