"""The demo models, made on this machine from what the package index carries."""

from .classifier import HeldOut, Labelled, heldout, read_labelled, train_topics
from .error import DemoError
from .sources import DemoSource, MadeWriter, cached_writer, demo_sources
from .training import WriterPlan
from .writer import WriterReport, make_writer

__all__ = [
    "DemoError",
    "DemoSource",
    "HeldOut",
    "Labelled",
    "MadeWriter",
    "WriterPlan",
    "WriterReport",
    "cached_writer",
    "demo_sources",
    "heldout",
    "make_writer",
    "read_labelled",
    "train_topics",
]
