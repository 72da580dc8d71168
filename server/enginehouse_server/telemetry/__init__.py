"""What operators see: metrics and logs. The rest of the server calls it through a Protocol."""

from .base import ModelTelemetry
from .metrics import Metrics

__all__ = ["Metrics", "ModelTelemetry"]
