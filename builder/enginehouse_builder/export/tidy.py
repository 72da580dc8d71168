"""Simplifications of the exported graph that leave every number as it is.

The exporter's own also take a constant near 0 or 1 (within 1e-8, and 1e-5 of itself) for 0 or 1,
and so drop what keeps a normalization from dividing by zero.
"""

import onnx_ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants_ir

__all__ = ["tidy"]


def tidy(model: onnx_ir.Model) -> None:
    """Inlines functions, computes what is constant and removes what is unused or said twice."""
    common.InlinePass()(model)
    fold_constants_ir(model, onnx_shape_inference=True)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
