"""Saves a demo model as any model of the hub is saved, without a progress bar."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

__all__ = ["save"]


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the model and its tokenizer in `save_pretrained` form."""
    was_bar_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if was_bar_enabled:
            transformers_logging.enable_progress_bar()
