"""The floor of generation: the served engine stepped in a bare loop, with nothing around it.

A process of its own, so that only one of both computes at a time. It obeys lines on standard input:
"decode SEQUENCES PROMPT NEW" answers tokens a second of so many sequences decoded together after
prompts of that many tokens; "prefill PROMPT" answers the milliseconds of one.
"""

import sys
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np

from enginehouse_builder.manifest import read_manifest
from enginehouse_server.engine.create import create_decoder
from enginehouse_server.engine.decoder import (
    DecoderEngine,
    DecoderSpec,
    LayerGeometry,
    StepItem,
)
from enginehouse_server.engine.threads import available_threads

__all__: list[str] = []

_CACHE_BYTES = 2 * 2**30
_PROMPT_SEED = 0


def main(version: Path) -> None:
    """Loads the engine as the server does, and obeys."""
    manifest = read_manifest(version)
    task, chosen = manifest.generate, manifest.decoders[0]
    assert task is not None
    spec = DecoderSpec(
        model=version / chosen.model,
        precision=chosen.precision,
        cache_precision=chosen.cache_precision,
        layers=tuple(LayerGeometry(*astuple(layer)) for layer in task.layers),
        vocab_size=task.vocab_size,
        max_tokens=manifest.limits.max_tokens,
        max_step_tokens=manifest.limits.max_batch_tokens,
        max_sequences=manifest.limits.max_batch,
        cache_bytes=_CACHE_BYTES,
        num_threads=available_threads(),
    )
    engine = create_decoder(chosen.backend, spec)
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        numbers = [int(argument) for argument in arguments]
        answer = _decode(engine, *numbers) if command == "decode" else _prefill(engine, *numbers)
        print(answer, flush=True)
    engine.close()


def _decode(engine: DecoderEngine, num_sequences: int, num_prompt: int, num_new: int) -> float:
    """Tokens a second of greedy decoding, prefill not counted."""
    sequences = [_begin(engine, i, num_prompt, num_new) for i in range(num_sequences)]
    began = time.perf_counter()
    for step in range(num_new):
        items = [StepItem(blocks, num_prompt + step, [token]) for blocks, token in sequences]
        engine.start(items)
        chosen = engine.wait().argmax(-1)
        sequences = [(blocks, int(t)) for (blocks, _), t in zip(sequences, chosen, strict=True)]
    return num_sequences * num_new / (time.perf_counter() - began)


def _prefill(engine: DecoderEngine, num_prompt: int) -> float:
    """Milliseconds until the first token of one prompt."""
    began = time.perf_counter()
    _begin(engine, 0, num_prompt, 1)
    return 1e3 * (time.perf_counter() - began)


def _begin(
    engine: DecoderEngine, index: int, num_prompt: int, num_new: int
) -> tuple[list[int], int]:
    """Prefills a random prompt into blocks of its own; gives these and the first token."""
    num_blocks = -(-(num_prompt + num_new) // engine.limits.block_size)
    blocks = list(range(index * num_blocks, (index + 1) * num_blocks))
    prompt = np.random.default_rng(_PROMPT_SEED + index).integers(1000, 2000, num_prompt).tolist()
    token, size = 0, engine.limits.max_step_tokens
    for start in range(0, num_prompt, size):
        engine.start([StepItem(blocks, start, prompt[start : start + size])])
        token = int(engine.wait()[0].argmax())
    return blocks, token


if __name__ == "__main__":
    main(Path(sys.argv[1]))
