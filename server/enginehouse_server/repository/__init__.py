"""The engine repository: what is in it, what of it can be served, and the loaded models."""

from .catalog import Catalog, Entry, ModelState
from .load import LoadedClassifier, LoadSettings, load_classifier
from .scan import Found, scan

__all__ = [
    "Catalog",
    "Entry",
    "Found",
    "LoadSettings",
    "LoadedClassifier",
    "ModelState",
    "load_classifier",
    "scan",
]
