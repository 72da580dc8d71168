"""A graph's weights, read from beside it one at a time and written one at a time."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

__all__ = ["read_weight", "write_graph"]

_INLINE_BYTES = 1024  # smaller ones stay in the graph: shapes are read from there
_ALIGNMENT = 4096  # of a file that is mapped into memory


def read_weight(tensor: TensorProto, folder: Path) -> NDArray[np.generic]:
    """The weight, wherever it is kept.

    A data file may be linked to from several folders, which onnx's own reader refuses.

    Args:
        tensor: An initializer.
        folder: Of the graph's file.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        where = {entry.key: entry.value for entry in tensor.external_data}
        with (folder / where["location"]).open("rb") as file:
            file.seek(int(where.get("offset", 0)))
            content = file.read(int(where["length"]) if "length" in where else -1)
        tensor = TensorProto(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content
        )
    found: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return found


def write_graph(model: ModelProto, weights: Iterable[TensorProto], file: Path) -> None:
    """Writes a graph, its large weights as `<file>.data` beside it, in a second and much disk.

    Args:
        model: The graph, whose initializers these weights replace.
        weights: Each with its values inside; taken one at a time.
        file: Where it goes.
    """
    del model.graph.initializer[:]
    data = file.with_name(f"{file.name}.data")
    with data.open("wb") as out:
        for weight in weights:
            raw = weight.raw_data
            if len(raw) > _INLINE_BYTES:
                out.seek(-out.tell() % _ALIGNMENT, 1)
                place = {"location": data.name, "offset": out.tell(), "length": len(raw)}
                out.write(raw)
                weight.ClearField("raw_data")
                weight.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    weight.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(weight)
        is_empty = not out.tell()
    if is_empty:
        data.unlink()
    file.write_bytes(model.SerializeToString())
