"""The floor: the served engine in process, texts tokenized beforehand, perfect batches by length.

A process of its own, so that only one of both computes at a time. It obeys lines on standard input:
"throughput SECONDS" answers tokens a second, "single" answers the median milliseconds of one text.
"""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from enginehouse_builder.manifest import read_manifest
from enginehouse_server.engine.base import EncoderEngine, EncoderSpec, Shape
from enginehouse_server.engine.create import create_encoder
from enginehouse_server.engine.threads import available_threads
from enginehouse_server.scheduler import EncoderWork
from enginehouse_server.text import TextInput, Tokenizer

__all__: list[str] = []

_BATCH_SIZES = (4, 8, 16, 32)
_SINGLE_RUNS = 200
_TRIAL_S = 3.0


def main(version: Path, texts_file: Path, num_lanes: int) -> None:
    """Loads the engine as the server does, finds the best batch size, and obeys."""
    manifest = read_manifest(version)
    assert manifest.classify is not None
    chosen = manifest.engines[0]
    texts = texts_file.read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(version / "tokenizer/tokenizer.json", manifest.limits.max_tokens)
    works = [EncoderWork(0, 0, e.ids) for e in tokenizer.encode([TextInput(t) for t in texts])]
    works.sort(key=lambda w: len(w.ids))
    spec = EncoderSpec(
        model=version / chosen.model,
        precision=chosen.precision,
        inputs=tuple(t.name for t in manifest.inputs),
        pad_id=manifest.classify.pad_id,
        max_batch_tokens=max(_BATCH_SIZES) * len(works[-1].ids),
        num_shapes=1000,
        num_threads=available_threads(),
        num_lanes=num_lanes,
    )
    engine = create_encoder(chosen.backend, spec)
    plans = {size: _batches(works, size) for size in _BATCH_SIZES}
    for plan in plans.values():
        _compute(engine, iter(plan))  # a shape's first time is a compilation
    rates = {size: _rate(engine, plan, _TRIAL_S) for size, plan in plans.items()}
    best = max(rates, key=rates.__getitem__)
    print(f"ready, batches of {best}", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "throughput":
            print(_rate(engine, plans[best], float(arguments[0])), flush=True)
        else:
            print(_single_ms(engine, works[0]), flush=True)


def _batches(works: list[EncoderWork], size: int) -> list[list[EncoderWork]]:
    """Batches of neighbours in length, the longest first: no lane waits for a long last one."""
    batches = [works[i : i + size] for i in range(0, len(works), size)]
    return batches[::-1]


def _compute(engine: EncoderEngine, batches: Iterator[list[EncoderWork]]) -> int:
    """Computes all batches, every lane taking the next; returns their tokens."""
    lock, num_tokens = threading.Lock(), [0] * len(engine.lanes)

    def run(index: int) -> None:
        lane = engine.lanes[index]
        while True:
            with lock:
                rows = next(batches, None)
            if rows is None:
                return
            lane.start(rows, Shape(len(rows), max(len(r.ids) for r in rows)))
            lane.wait()
            num_tokens[index] += sum(len(r.ids) for r in rows)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(engine.lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(num_tokens)


def _rate(engine: EncoderEngine, plan: list[list[EncoderWork]], seconds: float) -> float:
    """Tokens a second, over whole passes through the plan without a pause between them."""
    began = time.perf_counter()

    def passes() -> Iterator[list[EncoderWork]]:
        while time.perf_counter() - began < seconds:
            yield from plan

    num_tokens = _compute(engine, passes())
    return num_tokens / (time.perf_counter() - began)


def _single_ms(engine: EncoderEngine, work: EncoderWork) -> float:
    times = []
    for _ in range(_SINGLE_RUNS):
        began = time.perf_counter()
        engine.lanes[0].start([work], Shape(1, len(work.ids)))
        engine.lanes[0].wait()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
