"""What a build is asked for."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginehouse_server.engine.decoder import AttentionKind, CachePrecision, DecoderPrecision

from .errors import SpecError
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
        target: Runtimes to build for, each BACKEND or BACKEND=PRECISION; none is openvino.
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
            has answered as many as a certificate needs.
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
    adapter: Path | None = None
    target: tuple[str, ...] = ()
    precision: DecoderPrecision = "fp32"
    cache_precision: CachePrecision | None = None
    max_tokens: int | None = None
    max_batch: int = 32
    max_batch_tokens: int | None = None
    certify_minutes: float = 2.0
    samples: Path | None = None
    trust_remote_code: bool = False
    num_threads: int | None = None

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

    def check_cache(self, precision: DecoderPrecision) -> None:
        """Refuses a cache in a precision that an engine of that precision never has.

        Raises:
            SpecError: It is neither that of the arithmetic nor u8.
        """
        computes = "bf16" if precision == "bf16" else "fp32"
        if self.cache_precision not in (None, computes, "u8"):
            raise SpecError(
                f"--cache-precision is {self.cache_precision}, but an engine in {precision} "
                f"computes in {computes} and caches in that or in u8: use --cache-precision "
                f"{computes} or u8"
            )

    def decoder_cache_precision(
        self, attention: AttentionKind, precision: DecoderPrecision
    ) -> CachePrecision:
        """Of a decoder's cached keys and values, by how it attends to them and its own precision.

        Raises:
            SpecError: It, or the arithmetic, is to be of a precision that slots do not come in.
        """
        if attention == "paged":
            self.check_cache(precision)
            return self.cache_precision or ("fp32" if precision == "fp32" else "u8")
        if self.cache_precision not in (None, "fp32"):
            raise SpecError(
                f"--cache-precision is {self.cache_precision}, but this model's attention is none "
                "that the runtime has an operator for: its keys and values are kept in slots, in "
                "fp32. Leave the option out"
            )
        if precision == "bf16":
            raise SpecError(
                "--precision is bf16, but this model's attention is none that the runtime has an "
                "operator for: it is computed in slots, in fp32. Use fp32, int8 or int4"
            )
        return "fp32"
