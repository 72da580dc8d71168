"""The demo models, made on this machine from what the package index carries."""

from enginehouse_builder.demo.classifier import (
    DemoError,
    HeldOut,
    Labelled,
    heldout,
    read_labelled,
    train_topics,
)

__all__ = ["DemoError", "HeldOut", "Labelled", "heldout", "read_labelled", "train_topics"]
