"""Twice the sustainable rate, for minutes: what is lost, what is good, and whether memory grows."""

from collections.abc import Iterator
from statistics import mean

from .memory import MemoryWatch, growth_of
from .models import FOLDER, build_model, tokenizer_of
from .processes import Served, run_load
from .texts import mixed_texts

__all__ = ["overload"]

_DEADLINE_MS = 2000
_SAMPLE_S = 1.0


def overload(shape: str, minutes: float) -> Iterator[str]:
    """Finds the sustainable rate by a closed loop, then sends twice of it at random times."""
    version = build_model(shape, "fp32")
    texts_file = FOLDER / f"texts-overload-{shape}.txt"
    texts_file.write_text("\n".join(mixed_texts(tokenizer_of(version), 512)), encoding="utf-8")
    with Served(version) as server:
        closed = ("--concurrency", 64, "--duration", 20, "--timeout-ms", 60000)
        before = _rate(run_load(server, texts_file, *closed))
        seconds = 60 * minutes
        deadline = ("--timeout-ms", _DEADLINE_MS, "--slo-ms", _DEADLINE_MS)
        open_ = ("--rate", 2 * before, "--duration", seconds, "--max-in-flight", 4096, *deadline)
        with MemoryWatch(server.process_id, _SAMPLE_S) as watch:
            load = run_load(server, texts_file, *open_)
        after = _rate(run_load(server, texts_file, *closed))
    counts, sustainable = load["counts"], mean([before, after])
    good = load["throughput"]["goodput_per_second"]
    codes = {e["code"]: e["count"] for e in load["errors"]}
    ended = counts["answered"] + counts["failed"] + counts["unsent"] + counts["unfinished"]
    yield f"overload {shape} fp32, {minutes:g} minutes at twice the sustainable rate:"
    yield f"  sustainable {before:.1f} requests/s before, {after:.1f} after; sent {2 * before:.1f}"
    share = good / sustainable
    yield f"  goodput within {_DEADLINE_MS} ms: {good:.1f}, {share:.1%} of it (bar: 90 %)"
    yield f"  {ended} ended: {counts['answered']} answered, failed by status {codes}, "
    others = sorted(set(codes) - {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
    yield f"  unsent {counts['unsent']}, without an answer {counts['unfinished']} (bar: 0)"
    yield f"  other failures: {', '.join(others) or 'none'} (bar: none)"
    yield f"  memory {growth_of(watch.samples)} (bar: 3 %)"
    generator = load["generator"]["cpu_share"]
    yield f"  the load generator used {generator:.1%} of a core, the server {watch.cpu_share:.1%}"


def _rate(load: dict[str, dict[str, float]]) -> float:
    return float(load["throughput"]["requests_per_second"])
