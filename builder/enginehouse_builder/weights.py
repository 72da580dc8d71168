"""The weight files of a checkpoint: found, checked to be whole, and hashed."""

import hashlib
import json
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import ResolveError
from .manifest import sha256_of

__all__ = ["INDEX_FILE", "PICKLES", "num_weights", "weight_files", "weights_sha256"]

INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

_SINGLE = "model.safetensors"


def weights_sha256(folder: Path, model: str) -> str:
    r"""SHA-256 that stands for all weights of a folder.

    It is taken over a line `<file name> <SHA-256 of the file>\n` for each file, sorted by name, so
    `sha256sum` alone can reproduce it.

    Raises:
        ResolveError: As `weight_files`, or a file is cut short or damaged.
    """
    lines = []
    for file in weight_files(folder, model):
        _num_weights_of(file, model)  # whole
        lines.append(f"{file.name} {sha256_of(file)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weight_files(folder: Path, model: str) -> list[Path]:
    """The safetensors files that transformers loads from a folder, sorted by name.

    Args:
        folder: Of the checkpoint.
        model: What the messages call it.

    Raises:
        ResolveError: There are none, or one that the index names is missing.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / INDEX_FILE).is_file():
        files = [folder / name for name in sorted(_shards(folder / INDEX_FILE, model))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ResolveError(f"{model}: {INDEX_FILE} names {missing[0]}, which is not there")
        return files
    raise ResolveError(_no_weights(folder, model))


def num_weights(folder: Path, model: str) -> int:
    """How many numbers a checkpoint holds, from the headers of its files.

    Raises:
        ResolveError: As `weight_files`, or a file is cut short or damaged.
    """
    return sum(_num_weights_of(file, model) for file in weight_files(folder, model))


def _shards(index: Path, model: str) -> set[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResolveError(f"{model}: {INDEX_FILE} cannot be read: {error!r}") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ResolveError(
            f"{model}: {INDEX_FILE} names {outside[0]!r}, which is no file beside it"
        )
    return names


def _num_weights_of(file: Path, model: str) -> int:
    """Numbers in a file that is whole."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in list(tensors.keys())]
    except (SafetensorError, OSError) as error:
        raise ResolveError(
            f"{model}: {file.name} ({file.stat().st_size} bytes) is damaged or cut short: {error}. "
            "Fetch or save it again"
        ) from error
    if not shapes:
        raise ResolveError(f"{model}: {file.name} holds no tensors")
    return sum(int(prod(shape)) for shape in shapes)


def _no_weights(folder: Path, model: str) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            f"{model} holds an adapter, not a model: give its base model with --model, and this "
            "folder with --adapter"
        )
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{model} has its weights as a pickle ({pickles[0]}), which can run any code when it "
            "is loaded; only safetensors are read. If you trust the file, convert it: load the "
            "model with transformers and call save_pretrained into a new folder"
        )
    return f"{model} has no {_SINGLE}: it holds no weights"
