"""The models of this server by name and version, and which of them answers a request."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from enginehouse_server.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    UnloadableError,
)
from enginehouse_server.tasks import Classifier, Generator

from .load import LoadedClassifier
from .load_decoder import LoadedDecoder

__all__ = ["Catalog", "Entry", "ModelState"]

ModelState = Literal["loading", "ready", "unloadable", "draining"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A version of a model and how it stands; replaced whole when that changes.

    Attributes:
        model: Name.
        version: Positive.
        state: Whether it answers.
        reason: Why not, and what to do; empty when ready.
        loaded: What was loaded, from "ready" on.
        runner: What answers, from "ready" on.
    """

    model: str
    version: int
    state: ModelState
    reason: str = ""
    loaded: LoadedClassifier | LoadedDecoder | None = None
    runner: Classifier | Generator | None = None


class Catalog:
    """All entries. Belongs to the event loop."""

    def __init__(
        self,
        version_labels: Mapping[tuple[str, str], int],
        on_change: Callable[[Entry], None],
    ) -> None:
        """Takes version by (name, label), and who is told of every change."""
        self._entries: dict[str, dict[int, Entry]] = {}
        self._version_labels, self._on_change = version_labels, on_change

    def put(self, entry: Entry) -> None:
        """Adds an entry, or replaces that of the same version."""
        self._entries.setdefault(entry.model, {})[entry.version] = entry
        self._on_change(entry)

    def __iter__(self) -> Iterator[Entry]:
        """Entries by name and then version, newest first."""
        for _, versions in sorted(self._entries.items()):
            yield from (versions[v] for v in sorted(versions, reverse=True))

    def find(self, model: str, version: int | None = None) -> Entry:
        """One entry; without a version the newest that is ready, or else the newest.

        Raises:
            ModelNotFoundError: There is none.
        """
        versions = self._entries.get(model)
        if not versions:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ModelNotFoundError(f"there is no model {model!r}; served here: {known}")
        if version is None:
            return max(versions.values(), key=lambda e: (e.state == "ready", e.version))
        if version not in versions:
            known = ", ".join(map(str, sorted(versions)))
            raise ModelNotFoundError(f"model {model!r} has no version {version}; it has: {known}")
        return versions[version]

    def classifier(
        self, model: str, version: int | None, label: str | None
    ) -> tuple[Entry, Classifier]:
        """The entry that answers a request to classify.

        Raises:
            InvalidRequestError: No model is named, or version and label are, or it does not
                classify.
            ModelNotFoundError: There is none.
            NotReadyError: It does not answer now.
            UnloadableError: It cannot be served.
        """
        entry = self._ready(model, version, label)
        if not isinstance(entry.runner, Classifier):
            raise InvalidRequestError(
                f"model {model!r} generates text and does not classify: call Generate or "
                "GenerateStream, or name a model whose task is classify",
                "model",
            )
        return entry, entry.runner

    def generator(
        self, model: str, version: int | None, label: str | None
    ) -> tuple[Entry, Generator]:
        """The entry that answers a request to generate.

        Raises:
            InvalidRequestError: No model is named, or version and label are, or it does not
                generate.
            ModelNotFoundError: There is none.
            NotReadyError: It does not answer now.
        """
        entry = self._ready(model, version, label)
        if not isinstance(entry.runner, Generator):
            raise InvalidRequestError(
                f"model {model!r} classifies texts and does not generate any: call Classify, or "
                "name a model whose task is generate",
                "model",
            )
        return entry, entry.runner

    def _ready(self, model: str, version: int | None, label: str | None) -> Entry:
        if not model:
            raise InvalidRequestError("model is empty; name the model to ask", "model")
        if label is not None:
            if version is not None:
                raise InvalidRequestError(
                    "version and version_label are both set; set one", "version_label"
                )
            version = self._version_of(model, label)
        entry = self.find(model, version)
        if entry.state != "ready" or entry.runner is None:
            kind = UnloadableError if entry.state == "unloadable" else NotReadyError
            raise kind(
                f"model {entry.model!r} version {entry.version} is {entry.state}: {entry.reason}"
            )
        return entry

    def _version_of(self, model: str, label: str) -> int:
        self.find(model)
        known = {k[1]: v for k, v in self._version_labels.items() if k[0] == model}
        if label not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ModelNotFoundError(
                f"model {model!r} has no version label {label!r}; it has: {names}"
            )
        return known[label]
