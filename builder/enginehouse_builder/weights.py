"""The weight files of a checkpoint: found, checked to be whole, and hashed."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import ResolveError
from .manifest import sha256_of

__all__ = ["weight_files", "weights_sha256"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weights_sha256(folder: Path, model: str) -> str:
    r"""SHA-256 that stands for all weights of a folder.

    It is taken over a line `<file name> <SHA-256 of the file>\n` for each file, sorted by name, so
    `sha256sum` alone can reproduce it.

    Raises:
        ResolveError: As `weight_files`, or a file is cut short or damaged.
    """
    lines = []
    for file in weight_files(folder, model):
        _check_whole(file, model)
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
    if (folder / _INDEX).is_file():
        files = [folder / name for name in sorted(_shards(folder / _INDEX, model))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ResolveError(f"{model}: {_INDEX} names {missing[0]}, which is not there")
        return files
    raise ResolveError(_no_weights(folder, model))


def _shards(index: Path, model: str) -> set[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResolveError(f"{model}: {_INDEX} cannot be read: {error!r}") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ResolveError(f"{model}: {_INDEX} names {outside[0]!r}, which is no file beside it")
    return names


def _check_whole(file: Path, model: str) -> None:
    try:
        with safe_open(file, framework="numpy") as tensors:
            num_tensors = len(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ResolveError(
            f"{model}: {file.name} ({file.stat().st_size} bytes) is damaged or cut short: {error}. "
            "Fetch or save it again"
        ) from error
    if num_tensors == 0:
        raise ResolveError(f"{model}: {file.name} holds no tensors")


def _no_weights(folder: Path, model: str) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            f"{model} holds an adapter, not a model: merge it into its base model (peft: "
            "merge_and_unload), save that and build it"
        )
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{model} has its weights as a pickle ({pickles[0]}), which can run any code when it "
            "is loaded; only safetensors are read. If you trust the file, convert it: load the "
            "model with transformers and call save_pretrained into a new folder"
        )
    return f"{model} has no {_SINGLE}: it holds no weights"
