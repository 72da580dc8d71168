"""`python -m bench.gpu`: Classify and Generate on an NVIDIA GPU, beside transformers on torch.

Everything of one line is measured in one run on one GPU, the peer right after the server, in
processes of their own. What is not installed is said, not left out silently.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

__all__: list[str] = []

_REFUSED = 5  # as where no test could run
_IN_FLIGHT = (1, 16, 64, 256)
_CLASSIFY = {"classify-base": "base", "classify-large": "large"}
_GENERATE = {"generate-qwen3": "qwen3", "generate-llama8b": "llama8b"}


def main() -> None:
    """Measures what is named, or everything."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=main.__doc__)
    parser.add_argument("--only", action="append", choices=[*_CLASSIFY, *_GENERATE])
    parser.add_argument("--target", default="onnxruntime", help="as of `enginehouse build`")
    parser.add_argument("--classify-precision", default="fp16")
    parser.add_argument("--generate-precision", default="bf16")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    given = parser.parse_args()
    if obstacle := _obstacle():
        sys.exit(_refuse(obstacle))
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {_gpu()}; engines of {given.target}", flush=True
    )
    failures = 0
    for name in given.only or [*_CLASSIFY, *_GENERATE]:
        print(f"{name}:", flush=True)
        try:
            for line in _scenario(name, given)():
                print(f"  {line}", flush=True)
        except Exception as error:  # the others are measured all the same
            failures += 1
            print(f"  FAILED: {type(error).__name__}: {error}", flush=True)
    sys.exit(1 if failures else 0)


def _scenario(name: str, given: argparse.Namespace) -> Callable[[], Iterator[str]]:
    from .gpu_classify import measure_classify
    from .gpu_generate import measure_generate

    if name in _CLASSIFY:
        return lambda: measure_classify(
            _CLASSIFY[name], given.target, given.classify_precision, given.seconds
        )
    return lambda: measure_generate(
        _GENERATE[name], given.target, given.generate_precision, _IN_FLIGHT
    )


def _obstacle() -> str:
    """Why nothing can be measured here; empty if it can."""
    if shutil.which("nvidia-smi") is None:
        return "this machine has no NVIDIA driver (nvidia-smi is not found)"
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.strip():
        return f"nvidia-smi lists no GPU: {(found.stdout + found.stderr).strip()}"
    try:
        import torch
    except ImportError as error:
        return f"torch is not installed ({error}): the peer is transformers on torch"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU: it is a build without CUDA, or too new"
    return ""


def _refuse(obstacle: str) -> int:
    print(
        f"make bench-gpu: {obstacle}. It measures engines on a GPU beside transformers on the same "
        "GPU, and there is nothing to measure without one; docs/gpu.md says what it needs.",
        file=sys.stderr,
    )
    return _REFUSED


def _gpu() -> str:
    fields = "name,driver_version,memory.total"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    assert Path("bench").is_dir(), "to be run in the repository's root"
    main()
