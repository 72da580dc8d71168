"""What a build is asked for."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.decoder import CachePrecision

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
        adapter: Folder of a LoRA adapter that is merged into the model; None for none.
        target: What to build for, each TARGET or TARGET=PRECISION; none is openvino, and with a GPU
            everything that can be built for this machine.
        precision: Arithmetic of the engines, or of their weights where those are narrower, where a
            target does not say it.
        cache_precision: Of a decoder's cached keys and values; None is fp32 for fp32 and wherever
            they are in slots, else u8.
        max_tokens: Longest row; of a decoder, prompt and answer together. None is the model's own
            limit, at most 512 for a classifier and 4096 for a decoder.
        max_batch: Most rows of a batch; of a decoder, most sequences at once.
        max_batch_tokens: Most rows * padded length of a batch; of a decoder, most new tokens of a
            step. None derives it from the other limits.
        certify_minutes: How long the original of a decoder may go on answering prompts, once it
            has answered as many as a certificate needs. Where a prompt past a window, or past a
            length that positions are scaled from, would take longer (and longer than a minute),
            sequences end there.
        samples: File of one text a line for certificate and calibration; None is the shipped one.
        trust_remote_code: Whether the model's own Python code may run here.
        num_threads: Processor threads to measure with; None is what this process may use.
        optimization_level: Of plans, 0 to 5.
        workspace_bytes: Of plans: most memory of the GPU beside their tensors; None for all.
    """

    model: str
    repository: Path
    cache: Path
    name: str | None = None
    task: Task | None = None
    revision: str | None = None
    adapter: Path | None = None
    target: tuple[str, ...] = ()
    precision: Precision = "fp32"
    cache_precision: CachePrecision | None = None
    max_tokens: int | None = None
    max_batch: int = 32
    max_batch_tokens: int | None = None
    certify_minutes: float = 2.0
    samples: Path | None = None
    trust_remote_code: bool = False
    num_threads: int | None = None
    optimization_level: int = 3
    workspace_bytes: int | None = None

    @property
    def command(self) -> str:
        """A command that builds the same elsewhere, up to its targets."""
        options = {
            "--model": self.model,
            "--name": self.name,
            "--task": self.task,
            "--revision": self.revision,
            "--adapter": self.adapter,
            "--max-tokens": self.max_tokens,
            "--max-batch": self.max_batch,
            "--max-batch-tokens": self.max_batch_tokens,
            "--samples": self.samples,
        }
        words = [str(w) for o, value in options.items() if value is not None for w in (o, value)]
        return shlex.join(["enginehouse", "build", *words])
