"""The engine repository: what is in it, what of it can be served, and the loaded models."""

from .catalog import Catalog, Entry, ModelState
from .check import CheckedEngine, CheckedVersion, check_version, versions_at
from .compatibility import judge, missing_target, rank
from .load import LoadedClassifier, LoadSettings, load_classifier
from .load_decoder import DecoderSettings, LoadedDecoder, load_decoder
from .machines import machine_for, machine_to_json, read_machine
from .scan import Found, scan
from .verdict import Rebuild, Verdict
from .version import all_engines, name_of, read_version

__all__ = [
    "Catalog",
    "CheckedEngine",
    "CheckedVersion",
    "DecoderSettings",
    "Entry",
    "Found",
    "LoadSettings",
    "LoadedClassifier",
    "LoadedDecoder",
    "ModelState",
    "Rebuild",
    "Verdict",
    "all_engines",
    "check_version",
    "judge",
    "load_classifier",
    "load_decoder",
    "machine_for",
    "machine_to_json",
    "missing_target",
    "name_of",
    "rank",
    "read_machine",
    "read_version",
    "scan",
    "versions_at",
]
