"""The engine repository: what is in it, what of it can be served, and the loaded models."""

from .catalog import Catalog, Entry, ModelState
from .load import LoadedClassifier, LoadSettings, load_classifier
from .load_decoder import DecoderSettings, LoadedDecoder, load_decoder
from .scan import Found, scan
from .version import name_of, read_version

__all__ = [
    "Catalog",
    "DecoderSettings",
    "Entry",
    "Found",
    "LoadSettings",
    "LoadedClassifier",
    "LoadedDecoder",
    "ModelState",
    "load_classifier",
    "load_decoder",
    "name_of",
    "read_version",
    "scan",
]
