"""Models of the Hugging Face hub, fetched into its own cache.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub,
which also repeats what failed for a moment and never takes part of a snapshot for the whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from .errors import ResolveError

__all__ = ["Snapshot", "fetch"]

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Copies in other formats and precisions lie in subfolders, or beside the model under these names.
_NOT_FILES = ["*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt", "consolidated*.safetensors"]


class Snapshot(NamedTuple):
    """A model's files at one commit."""

    folder: Path
    commit: str


def fetch(model: str, revision: str | None, *, with_code: bool) -> Snapshot:
    """Fetches what the build reads of a model, or finds it in the cache.

    Args:
        model: Hub id.
        revision: Branch, tag or commit; None is the default branch.
        with_code: Whether the model's Python files are wanted.

    Raises:
        ResolveError: There is no such model or revision, it may not be read, or it cannot be
            fetched whole.
    """
    patterns = [*_FILES, "*.py"] if with_code else _FILES
    try:
        with _no_bars():
            folder = huggingface_hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_NOT_FILES,
                library_name="enginehouse",
            )
    except Exception as error:  # the library passes on those of its HTTP client too
        raise ResolveError(_reason(model, revision, error)) from error
    snapshot = Snapshot(Path(folder), Path(folder).name)
    _check_formats(model, snapshot)
    return snapshot


def _reason(model: str, revision: str | None, error: Exception) -> str:
    endpoint = huggingface_hub.constants.ENDPOINT
    match error:
        case errors.HFValidationError():
            return f"{model!r} is neither a folder here nor an id of the hub (owner/name)"
        case errors.GatedRepoError():
            return (
                f"{model} is gated: accept its terms at {endpoint}/{model}, then set HF_TOKEN to "
                "a token of that account"
            )
        case errors.RevisionNotFoundError():
            return f"{model} has no revision {revision!r} (branch, tag or commit) at {endpoint}"
        case errors.RepositoryNotFoundError():
            return (
                f"there is no model {model} at {endpoint}, and no folder of that name here; "
                "if it is private, set HF_TOKEN"
            )
        case errors.LocalEntryNotFoundError():
            return (
                f"{model} is not in the cache, at least not all of it, and {endpoint} cannot be "
                f"reached: {_cause(error)}. Try again with a network, or give a folder"
            )
    return (
        f"{model} could not be fetched whole from {endpoint}: {_cause(error)}. Run the build "
        "again: files that arrived whole are kept"
    )


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__ or error
    text = next((line for line in str(cause).splitlines() if line.strip()), "")
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def _check_formats(model: str, snapshot: Snapshot) -> None:
    """Names the pickle that a model has instead of safetensors: it was not fetched."""
    if next(snapshot.folder.glob("*.safetensors"), None) is not None:
        return
    try:
        names = huggingface_hub.list_repo_files(model, revision=snapshot.commit)
    except Exception:  # only the message is poorer for it
        return
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise ResolveError(
            f"{model} has its weights as a pickle ({pickles[0]}), which can run any code when it "
            "is loaded; only safetensors are read. Look for a revision that has them "
            "(--revision refs/pr/…), or convert it: load the model with transformers and call "
            "save_pretrained into a folder"
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    was_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()
