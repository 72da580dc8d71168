"""How far an engine's answers may be from the original's, by precision."""

from typing import NamedTuple

from enginehouse_server.engine.base import Precision

__all__ = ["NEAR_TIE", "TOLERANCES", "Tolerance"]

# Share of what logits vary by. Labels closer than that in the original are no decision to keep: on
# texts that fit no label, the best two are often as close, and any rounding turns them over.
NEAR_TIE = 0.05


class Tolerance(NamedTuple):
    """What a precision must keep.

    Attributes:
        error: Greatest error of a logit, by how far the reference's vary over the samples. An
            engine that does not listen is off by 0.5 at least.
        agreement: Least share of decisions that stay, near ties left out.
        clear: Least share of decisions that are no near ties, or else agreement says nothing.
    """

    error: float
    agreement: float
    clear: float


TOLERANCES: dict[Precision, Tolerance] = {
    # Another order of summation gives 3e-6 at most in six layers, more the deeper. A GELU of
    # the other kind shows as 1e-3, a wrong mask or epsilon as 1e-2 or more. It is proof enough
    # without any clear decision.
    "fp32": Tolerance(1e-4, 1.0, 0.0),
    # A rounding of 2^-9 an operation: 0.01 measured for six layers, and it grows with depth.
    "bf16": Tolerance(0.1, 0.97, 0.2),
    # Each layer's output is off by up to 2 %: 0.08 to 0.19 measured for six layers. A lost
    # outlier channel or a text unlike all samples gives 0.5 and more.
    "int8": Tolerance(0.25, 0.95, 0.2),
}
