"""The weights of a graph, written one after the other to a file beside it."""

from pathlib import Path
from types import TracebackType
from typing import Self

from onnx import TensorProto

__all__ = ["DataFile"]

_INLINE_BYTES = 1024  # smaller tensors stay in the graph's own file
_ALIGNMENT_BYTES = 64


class DataFile:
    """Takes tensors' contents; each is in memory only while it is written."""

    def __init__(self, path: Path) -> None:
        """Begins the file at `path`, which lies beside the graph."""
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def put(self, tensor: TensorProto, content: bytes) -> None:
        """Makes `content` the tensor's: in the file, aligned, or in the tensor if it is small."""
        _forget_data(tensor)
        if len(content) < _INLINE_BYTES:
            tensor.raw_data = content
            return
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT_BYTES))
        where = {"location": self._path.name, "offset": self._file.tell(), "length": len(content)}
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(content)


def _forget_data(tensor: TensorProto) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(field)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
