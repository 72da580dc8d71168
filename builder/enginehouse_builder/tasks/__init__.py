"""What is particular to a task: from the resolved model to what is to be published."""

from .building import Building
from .classify import build_classifier
from .generate import build_decoder

__all__ = ["Building", "build_classifier", "build_decoder"]
