"""What a model does between an RPC and its engine: plain data in, plain data out."""

from .classify import Classifier, ClassifyReply, ClassifyRequest, InputResult
from .scores import Activation

__all__ = ["Activation", "Classifier", "ClassifyReply", "ClassifyRequest", "InputResult"]
