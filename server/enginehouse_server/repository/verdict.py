"""What is said of an engine on a machine, and the command that makes another."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from enginehouse_builder.manifest import DecoderEngine, Engine

__all__ = ["AnyEngine", "Rebuild", "Verdict"]

AnyEngine = Engine | DecoderEngine


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an engine runs on a machine.

    Attributes:
        runs: Whether nothing is known that keeps it from running.
        field: What differs; empty if it runs.
        wanted: What the engine needs of it.
        found: What the machine has.
        remedy: What to do, a command where there is one.
        notes: What is worth knowing although it runs.
    """

    runs: bool
    field: str = ""
    wanted: str = ""
    found: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why it does not run; empty if it does."""
        return "" if self.runs else f"{self.field}: it needs {self.wanted}, here is {self.found}"


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The command that makes another engine of a version's model.

    Attributes:
        model: Its name.
        repository: The folder that it is in.
    """

    model: str
    repository: Path

    def to(self, target: str) -> str:
        """The command for a target."""
        return shlex.join(["enginehouse", *self.arguments(target)])

    def arguments(self, target: str) -> list[str]:
        """The command's arguments."""
        place = ["--repository", str(self.repository)]
        return ["build", "--rebuild", "--name", self.model, "--target", target, *place]
