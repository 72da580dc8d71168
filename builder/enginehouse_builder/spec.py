"""What a build is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginehouse_server.engine.base import Precision

__all__ = ["BuildSpec", "Task"]

Task = Literal["classify", "generate"]


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """One build, as the command line or a caller gives it.

    Attributes:
        model: Hub id, or path of a folder in `save_pretrained` form.
        repository: Folder that the version is published into.
        cache: Folder of stage results, shared by all builds.
        name: Name as served; None derives it from `model`.
        task: None finds it from the model's configuration.
        revision: Branch, tag or commit on the hub; None is the default branch.
        precision: Arithmetic of the engine.
        max_tokens: Longest row; None is the model's own limit, at most 512.
        max_batch: Most rows of a batch.
        max_batch_tokens: Most rows * padded length of a batch; None derives it from max_tokens.
        samples: File of one text a line for certificate and calibration; None is the shipped one.
        trust_remote_code: Whether the model's own Python code may run here.
        num_threads: Processor threads to measure with; None is what this process may use.
    """

    model: str
    repository: Path
    cache: Path
    name: str | None = None
    task: Task | None = None
    revision: str | None = None
    precision: Precision = "fp32"
    max_tokens: int | None = None
    max_batch: int = 32
    max_batch_tokens: int | None = None
    samples: Path | None = None
    trust_remote_code: bool = False
    num_threads: int | None = None
