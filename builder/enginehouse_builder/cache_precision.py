"""Which precision a decoder's cached keys and values may have, and which they have if none is said.

A runtime that compiles kernels for itself caches in what it computes in, or in u8. An engine that
computes in the types of its graph caches in those.
"""

from enginehouse_server.engine.decoder import AttentionKind, CachePrecision

from .errors import SpecError
from .precisions import arithmetic_of
from .targets import Target

__all__ = ["cache_precision_of", "check_cache_precision"]


def check_cache_precision(target: Target, asked: CachePrecision | None) -> None:
    """Refuses a cache that no engine of the target has, however it attends.

    Raises:
        SpecError: There is none.
    """
    if asked is None:
        return
    computes = _computes(target)
    if target.backend != "openvino":
        if asked != computes:
            raise SpecError(
                f"--cache-precision is {asked}, but --target {target.name} keeps keys and values "
                f"in slots, in {computes}. Leave the option out"
            )
    elif asked not in (computes, "u8"):
        raise SpecError(
            f"--cache-precision is {asked}, but an engine in {target.precision} computes in "
            f"{computes} and caches in that or in u8: use --cache-precision {computes} or u8"
        )


def cache_precision_of(
    target: Target, attention: AttentionKind, asked: CachePrecision | None
) -> CachePrecision:
    """Of a decoder's cached keys and values, by how it attends to them and its own precision.

    Raises:
        SpecError: It, or the arithmetic, is to be of a precision that slots do not come in.
    """
    check_cache_precision(target, asked)
    computes = _computes(target)
    if target.backend != "openvino":
        return computes
    if attention == "paged":
        return asked or ("fp32" if target.precision == "fp32" else "u8")
    if asked not in (None, "fp32"):
        raise SpecError(
            f"--cache-precision is {asked}, but this model's attention is none that the runtime "
            "has an operator for: its keys and values are kept in slots, in fp32. Leave the "
            "option out"
        )
    if target.precision == "bf16":
        raise SpecError(
            "--precision is bf16, but this model's attention is none that the runtime has an "
            "operator for: it is computed in slots, in fp32. Use fp32, int8 or int4"
        )
    return "fp32"


def _computes(target: Target) -> CachePrecision:
    found = arithmetic_of(target.precision, is_typed=target.is_plan)
    if found == "bf16":
        return "bf16"
    return "fp16" if found == "fp16" else "fp32"
