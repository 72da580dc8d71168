"""Classify on a GPU: texts a second within 10 ms at p99, and as many as it can, beside torch.

With a text a request what saturates first is the host, at one or two thousand calls a second; with
many a request it is tokenizing, or the GPU.
"""

from collections.abc import Iterator
from pathlib import Path

from .gpu_use import GpuUse
from .models import FOLDER, build_model, checkpoint_of, tokenizer_of
from .processes import Load, Process, Served, run_load
from .texts import mixed_texts

__all__ = ["measure_classify"]

_SLO_MS = 10.0
_IN_FLIGHT = 256
_TEXTS_A_REQUEST = 32
_NUM_TEXTS = 512
_STEPS = 6  # of the search for the rate within the bound
_TIMEOUT_MS = 60_000
# Of the batches of a GPU; without a word a build thinks of processors.
_BATCH_TOKENS = "16384"


def measure_classify(shape: str, target: str, precision: str, seconds: float) -> Iterator[str]:
    """Rates of the server, and of transformers in sorted batches on the same GPU."""
    more = ("--max-batch", "64", "--max-batch-tokens", _BATCH_TOKENS)
    version = build_model(shape, precision, target, *more)
    texts_file = FOLDER / f"texts-{_NUM_TEXTS}.txt"
    texts_file.write_text("\n".join(mixed_texts(tokenizer_of(version), _NUM_TEXTS)) + "\n")
    backend = target.partition(":")[0]
    flags = ("--require", backend)
    with Served(version, *flags) as server:
        pace = ("--concurrency", _IN_FLIGHT, "--duration", seconds)
        with GpuUse() as use:
            most = _load(server, texts_file, *pace)
        yield f"saturated, {_IN_FLIGHT} in flight: {_rate(most):.0f} texts/s, {use}"
        several = ("--texts-per-request", _TEXTS_A_REQUEST)
        pace = ("--concurrency", _IN_FLIGHT // _TEXTS_A_REQUEST, "--duration", seconds)
        with GpuUse() as use:
            texts = _texts(_load(server, texts_file, *pace, *several))
        yield f"saturated, {_TEXTS_A_REQUEST} texts a request: {texts:.0f} texts/s, {use}"
        rate, load = _within(server, texts_file, _rate(most), seconds)
        yield (
            f"within {_SLO_MS:.0f} ms at p99: {rate:.0f} texts/s"
            + (f", p99 {load['latency_ms']['p99']:.2f} ms" if load else " (no rate was)")
        )
    arguments = (checkpoint_of(shape), texts_file, precision, str(seconds))
    with Process("-m", "bench.peer_torch", "classify", *arguments) as peer, GpuUse() as use:
        peer_rate = peer.measure("go")
    yield f"transformers on torch, sorted batches of 64 in process: {peer_rate:.0f} texts/s, {use}"
    yield (
        f"served over transformers: {_rate(most) / peer_rate:.2f}, with {_TEXTS_A_REQUEST} texts a "
        f"request {texts / peer_rate:.2f}"
    )


def _within(
    server: Served, texts_file: Path, most: float, seconds: float
) -> tuple[float, Load | None]:
    """The greatest rate of random arrivals whose p99 keeps the bound, by halving."""
    low, high, best = 0.0, most, None
    for _ in range(_STEPS):
        rate = (low + high) / 2
        load = _load(server, texts_file, "--rate", f"{rate:.2f}", "--duration", seconds)
        counts, p99_ms = load["counts"], load["latency_ms"]["p99"]
        if counts["answered"] == counts["due"] and p99_ms <= _SLO_MS:
            low, best = rate, load
        else:
            high = rate
    return low, best


def _load(server: Served, texts_file: Path, *pace: str | float) -> Load:
    return run_load(server, texts_file, *pace, "--warmup", 1, "--timeout-ms", _TIMEOUT_MS)


def _rate(load: Load) -> float:
    return float(load["throughput"]["requests_per_second"])


def _texts(load: Load) -> float:
    return float(load["throughput"]["texts_per_second"])
