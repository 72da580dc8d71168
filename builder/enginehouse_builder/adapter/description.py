"""What an adapter's folder holds, in peft's form, and whether it can be merged exactly.

Whatever changes the model otherwise than by the product of two matrices beside a weight is refused
by name: left out silently it would make another model.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open

from enginehouse_builder.errors import ResolveError, UnsupportedModelError
from enginehouse_builder.manifest import sha256_of

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Adapter", "matrix_name", "read_adapter"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_MATRICES = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PICKLE = "adapter_model.bin"

# Setting -> what it does, where it is set.
_UNSUPPORTED = {
    "use_dora": "weights split into size and direction (DoRA)",
    "modules_to_save": "whole modules of its own",
    "trainable_token_indices": "embeddings of its own",
    "layer_replication": "layers that are repeated",
    "lora_bias": "biases of its own",
    "alora_invocation_tokens": "weights that only some tokens see (aLoRA)",
    "target_parameters": "parameters that are no module's weight",
    "megatron_config": "modules of Megatron",
    "use_bdlora": "matrices in blocks (BD-LoRA)",
    "arrow_config": "weights chosen for each token (Arrow)",
}
_CHANGES_BASE = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # initialisations that leave other base weights


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that can be merged.

    Attributes:
        folder: Holds its files.
        name: Of the folder.
        sha256: Of configuration and weights, in hexadecimal.
        scales: What the product of each module's two matrices is multiplied by.
        ranks: Of each module's two matrices.
    """

    folder: Path
    name: str
    sha256: str
    scales: Mapping[str, float]
    ranks: Mapping[str, int]


def read_adapter(folder: Path) -> Adapter:
    """Reads and checks an adapter.

    Raises:
        ResolveError: The folder holds none, or its files are damaged.
        UnsupportedModelError: It does more than can be merged; what is named.
    """
    folder = folder.expanduser().resolve()
    config = _config(folder)
    _check_kind(folder, config)
    sides = _sides(folder / WEIGHTS_FILE)
    if lone := sorted(module for module, found in sides.items() if len(found) != 2):
        raise ResolveError(f"{folder}: {lone[0]} has one of its two matrices only")
    return Adapter(
        folder=folder,
        name=folder.name,
        sha256=_sha256(folder),
        scales={module: _scale(module, config) for module in sorted(sides)},
        ranks={module: _rank(module, config) for module in sorted(sides)},
    )


def matrix_name(module: str, side: str) -> str:
    """The name of a module's matrix "A" `[rank, in]` or "B" `[out, rank]` in the file."""
    return f"{_PREFIX}{module}.lora_{side}.weight"


def _config(folder: Path) -> dict[str, object]:
    try:
        document = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResolveError(
            f"{folder} is no adapter: it has no {CONFIG_FILE} (give a folder that peft saved)"
        ) from None
    except (OSError, ValueError) as error:
        raise ResolveError(f"{folder}: {CONFIG_FILE} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ResolveError(f"{folder}: {CONFIG_FILE} holds no object")
    return document


def _check_kind(folder: Path, config: Mapping[str, object]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"the adapter {folder} is of type {kind!r}; only LORA can be merged"
        )
    faults = [f"{name}: {what}" for name, what in _UNSUPPORTED.items() if config.get(name)]
    if config.get("bias", "none") != "none":
        faults.append(f"bias is {config['bias']!r}: biases of its own")
    initial = str(config.get("init_lora_weights", "")).lower()
    if initial.startswith(_CHANGES_BASE):
        faults.append(
            f"init_lora_weights is {initial!r}: it was trained on base weights of its own"
        )
    if faults:
        raise UnsupportedModelError(
            f"the adapter {folder} does more than LoRA: {'; '.join(faults)}. Merge it with peft "
            "(merge_and_unload), save the model, and build that without --adapter"
        )


def _sides(file: Path) -> dict[str, set[str]]:
    """Which of its two matrices each module has."""
    if not file.is_file():
        more = f" ({_PICKLE} is a pickle, which can run any code: convert it)"
        is_pickle = file.with_name(_PICKLE).is_file()
        raise ResolveError(f"{file.parent} has no {WEIGHTS_FILE}" + more * is_pickle)
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ResolveError(f"{file} is damaged or cut short: {error}") from error
    sides: dict[str, set[str]] = {}
    for name in names:
        found = _MATRICES.fullmatch(name)
        if found is None:
            raise UnsupportedModelError(
                f"the adapter {file.parent} holds {name!r}, which is no LoRA matrix of a weight: "
                "merge it with peft (merge_and_unload), save the model, and build that"
            )
        sides.setdefault(found["module"], set()).add(found["side"])
    if not sides:
        raise ResolveError(f"{file} holds no matrices")
    return sides


def _scale(module: str, config: Mapping[str, object]) -> float:
    """LoRA's alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)."""
    rank = _rank(module, config)
    alpha = _of_module(module, config, "alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _rank(module: str, config: Mapping[str, object]) -> int:
    return int(_of_module(module, config, "rank_pattern", "r"))


def _of_module(module: str, config: Mapping[str, object], patterns: str, default: str) -> float:
    """A setting that some modules have of their own, by peft's rule: the first that matches."""
    own = cast(Mapping[str, float], config.get(patterns) or {})
    for pattern, value in own.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    common = config.get(default)
    if not isinstance(common, int | float) or common <= 0:
        raise ResolveError(f"{CONFIG_FILE}: {default} is {common!r}, not a positive number")
    return float(common)


def _sha256(folder: Path) -> str:
    """Of the weights' file alone would not do: scales are in the configuration."""
    lines = [f"{name} {sha256_of(folder / name)}\n" for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
