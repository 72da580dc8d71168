"""What operators see: metrics and logs. The rest of the server calls it through Protocols."""

from .base import GenerateTelemetry, ModelTelemetry, RequestTelemetry
from .generate_metrics import DecoderMetrics, StepCounts
from .metrics import Metrics

__all__ = [
    "DecoderMetrics",
    "GenerateTelemetry",
    "Metrics",
    "ModelTelemetry",
    "RequestTelemetry",
    "StepCounts",
]
