"""OpenVINO's operator of paged attention: the one place that knows its inputs.

It is no part of OpenVINO's public interface, and its inputs change between releases; these are
those of 2026.4. The operator writes new keys and values into blocks of `BLOCK_SIZE` tokens and
attends to what the blocks hold, for any mix of sequences, whose new tokens come as rows one after
the other.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import ArrayLike, DTypeLike

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.errors import PlanMismatchError

__all__ = ["BLOCK_SIZE", "CACHE_INPUTS", "STEP_INPUTS", "Rows", "connect", "paged_attention"]

BLOCK_SIZE = 32  # the only one that the processor's kernels know
_VERSION = "2026.4"

# Where the operator takes what changes with each step: places of sequences, tokens and blocks.
STEP_INPUTS: Mapping[str, int] = {
    "past_lens": 5,
    "subsequence_begins": 6,
    "block_indices": 7,
    "block_indices_begins": 8,
    "max_context_len": 12,
}
CACHE_INPUTS: Mapping[str, int] = {"key_cache": 3, "value_cache": 4}


class Rows(NamedTuple):
    """What attention is computed from, each `[tokens, heads * width]`; the query is scaled."""

    query: ov.Output
    key: ov.Output
    value: ov.Output


def paged_attention(
    rows: Rows, geometry: LayerGeometry, slopes: ov.Output | None, sinks: ov.Output | None
) -> ov.Node:
    """The operator, giving `[tokens, num_heads * value_dim]`; `connect` fills in what is left open.

    Args:
        rows: What attention is computed from.
        geometry: One that paging.py has no objection to.
        slopes: Of a linear bias, `[num_heads]` fp32, or None.
        sinks: Logits beside the scores, `[num_heads]` fp32, or None.

    Raises:
        PlanMismatchError: The operator of this OpenVINO takes other inputs.
    """
    try:
        from openvino.op import _PagedAttentionExtension  # pyright: ignore[reportAttributeAccessIssue]

        node = _PagedAttentionExtension(_inputs(rows, geometry, slopes, sinks))
    except (ImportError, RuntimeError, TypeError) as error:
        raise PlanMismatchError(
            f"paged attention of OpenVINO {ov.__version__} takes other inputs than that of "
            f"{_VERSION}, which this server was made for: pip install 'openvino=={_VERSION}.*'"
        ) from error
    described = node.get_rt_info()
    described["num_k_heads"] = described["num_v_heads"] = geometry.num_kv_heads
    described["k_head_size"], described["v_head_size"] = geometry.key_dim, geometry.value_dim
    return node


def connect(node: ov.Node, source: Callable[[str], ov.Output]) -> None:
    """Gives the operator its cache and the places of a step.

    Args:
        node: Made by `paged_attention`.
        source: Gives the tensor by name, of CACHE_INPUTS or STEP_INPUTS.
    """
    for name, index in {**CACHE_INPUTS, **STEP_INPUTS}.items():
        node.input(index).replace_source_output(source(name))


def _inputs(
    rows: Rows, geometry: LayerGeometry, slopes: ov.Output | None, sinks: ov.Output | None
) -> list[ov.Output]:
    """In the operator's order. What is off is said so, each in its own way."""
    i32, f32, u8 = np.int32, np.float32, np.uint8
    ints, floats = _constant([], i32), _constant([], f32)
    shape = (0, geometry.num_kv_heads, BLOCK_SIZE, geometry.key_dim)
    open_cache = _constant(np.zeros(shape), f32)
    return [
        *rows,
        *(open_cache, open_cache),
        *(ints, ints, ints, ints),  # 5 to 8: a step's places, left open
        _constant(1.0, f32),  # scale: in the query already
        _constant(geometry.window, i32),  # 0 for none
        floats if slopes is None else slopes,
        _constant(0, i32),  # longest sequence of the step, left open
        *(ints, ints, ints, floats),  # 13 to 16: scores to be given out, rotation of the cache
        *(floats, _constant(64, i32), _constant(8, i32)),  # 17 to 19: sparse prompts
        _constant(np.zeros((0, 0, 0, 0)), f32) if sinks is None else _sinks(sinks),
        *(_constant(0, i32), ints, ints, ints),  # 21 to 24: eviction from the cache
        *(ints, _constant([], u8), ints),  # 25 to 27: types of tokens, trees of them
    ]


def _sinks(sinks: ov.Output) -> ov.Output:
    """`[num_heads]` as `[1, num_heads, 1, 1]`."""
    shape = ops.constant(np.array([1, -1, 1, 1], np.int64))
    return ops.reshape(sinks, shape, False).output(0)


def _constant(value: ArrayLike, dtype: DTypeLike) -> ov.Output:
    return ops.constant(np.array(value, dtype)).output(0)
