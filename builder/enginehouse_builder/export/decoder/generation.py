"""How the model's makers want it to generate: when to stop, and how to choose."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from enginehouse_builder.manifest import GenerationDefaults
from enginehouse_builder.resolve import Resolved

__all__ = ["end_ids", "generation_defaults", "save_generation_config"]

_FILE_NAME = "generation_config.json"


def end_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, vocab_size: int
) -> tuple[int, ...]:
    """Tokens that end a sequence: the generation's configuration first, then the tokenizer."""
    configs = (model.generation_config, model.config, model.config.get_text_config())
    said = [getattr(config, "eos_token_id", None) for config in configs]  # some have no such field
    for named in (*said, tokenizer.eos_token_id):
        ids = named if isinstance(named, list) else [named]
        found = tuple(i for i in ids if isinstance(i, int) and 0 <= i < vocab_size)
        if found:
            return found
    return ()


def generation_defaults(resolved: Resolved) -> GenerationDefaults:
    """What the model's own generation_config.json says of sampling; None where it says nothing."""
    said = _read(resolved.folder / _FILE_NAME)
    sample = said.get("do_sample")
    return GenerationDefaults(
        do_sample=sample if isinstance(sample, bool) else None,
        temperature=_number(said, "temperature"),
        top_k=_whole(said, "top_k"),
        top_p=_number(said, "top_p"),
        min_p=_number(said, "min_p"),
        repetition_penalty=_number(said, "repetition_penalty"),
    )


def save_generation_config(resolved: Resolved, model: PreTrainedModel, folder: Path) -> None:
    """Writes generation_config.json: the model's own, or what transformers makes of its config."""
    original = resolved.folder / _FILE_NAME
    if original.is_file():
        shutil.copyfile(original, folder / _FILE_NAME)
        return
    document = model.generation_config.to_diff_dict()
    (folder / _FILE_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read(file: Path) -> Mapping[str, object]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file: transformers goes by config.json then
        return {}
    return document if isinstance(document, dict) else {}


def _number(said: Mapping[str, object], name: str) -> float | None:
    value = said.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(number := float(cast(float, value))):
        return None
    return number


def _whole(said: Mapping[str, object], name: str) -> int | None:
    value = _number(said, name)
    return None if value is None else int(value)
