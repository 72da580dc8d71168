"""What this server found out about engines, kept from one start to the next.

A version's folder never changes; what is true of an engine on this machine alone goes here.
"""

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from enginehouse_builder.manifest import from_json, to_json
from enginehouse_server.engine.whole_file import replace_file

__all__ = ["LocalCertificate", "StateFolder", "Trial"]

_log = logging.getLogger(__name__)


class Trial(NamedTuple):
    """What a finding is of: with any other of these it says nothing.

    Attributes:
        engine_sha256: Of the file that the runtime reads.
        reference_sha256: Of the file with the original's answers.
        runtime: What runs it, with its version.
        device: What it runs on.
        driver: The device's, which may compile for it.
        limits: What was compared was within these.
    """

    engine_sha256: str
    reference_sha256: str
    runtime: str
    device: str
    driver: str
    limits: str


@dataclass(frozen=True, slots=True)
class LocalCertificate:
    """How far an engine is from the original, here.

    Attributes:
        model: Name and version, as messages have them.
        engine_sha256: As in its trial, and so the next five.
        reference_sha256: Of the same.
        runtime: Of the same.
        device: Of the same.
        driver: Of the same.
        limits: Of the same.
        reference: What it was compared with.
        num_compared: Inputs or prompts.
        max_abs_error: Greatest absolute difference of a logit; None if one was no number.
        allowed: What it may be.
    """

    model: str
    engine_sha256: str
    reference_sha256: str
    runtime: str
    device: str
    driver: str
    limits: str
    reference: str
    num_compared: int
    max_abs_error: float | None
    allowed: float

    @property
    def trial(self) -> Trial:
        """What it is of."""
        return Trial(*(getattr(self, name) for name in Trial._fields))

    @property
    def is_passed(self) -> bool:
        """Whether the engine may serve."""
        return self.max_abs_error is not None and self.max_abs_error <= self.allowed


class StateFolder:
    """A folder of findings. Where it cannot be written nothing is kept, and that is said."""

    def __init__(self, folder: Path | None) -> None:
        """Takes the folder, made when it is needed; None for none."""
        self._folder = folder

    def recall(self, trial: Trial) -> LocalCertificate | None:
        """What was found, if it was."""
        file = self.file_of(trial)
        if file is None:
            return None
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            found = from_json(LocalCertificate, document, str(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("%s is not used: %s", file, error)
            return None
        return found if found.trial == trial else None

    def keep(self, found: LocalCertificate) -> None:
        """Writes it, whole or not at all."""
        file = self.file_of(found.trial)
        if file is None:
            return
        try:
            replace_file(file, [(json.dumps(to_json(found), indent=1) + "\n").encode()])
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s): the engine of %s is certified again at the next start; "
                "name another folder with --state-dir",
                *(file, error.strerror, found.model),
            )

    def file_of(self, trial: Trial) -> Path | None:
        """Where it is kept; None if nothing is."""
        if self._folder is None:
            return None
        name = sha256("\n".join(trial).encode()).hexdigest()[:32]
        return self._folder / "certificates" / f"{name}.json"
