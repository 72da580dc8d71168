"""onnxruntime-genai's generator, obeying lines on standard input.

Runs in an environment of its own. Each line is a workload as JSON, the answer the times of tokens.
It has no continuous batching on the CPU: all requests are one batch, due at once and equally long.
"""

import json
import os
import sys
import time
from typing import TypedDict

import numpy as np
import onnxruntime_genai as og

__all__: list[str] = []


class _Request(TypedDict):
    due_s: float
    prompt: list[int]
    num_new: int


def main(folder: str, num_threads: int) -> None:
    """Loads the model and obeys."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    og.disable_telemetry_events()
    config = og.Config(folder)
    session = {"intra_op_num_threads": num_threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(json.dumps(_replay(model, json.loads(line))) + "\n")


def _replay(model: og.Model, requests: list[_Request]) -> list[list[float]]:
    [num_new] = {request["num_new"] for request in requests}
    [due_s] = {request["due_s"] for request in requests}
    prompts = np.array([request["prompt"] for request in requests], dtype=np.int32)
    assert due_s == 0
    began, times = time.perf_counter(), list[float]()
    length = prompts.shape[1] + num_new
    params = og.GeneratorParams(model)
    # As long as it may be at least: the end of sequence is ignored.
    params.set_search_options(
        batch_size=len(requests), do_sample=False, max_length=length, min_length=length
    )
    generator = og.Generator(model, params)
    generator.append_tokens(prompts)
    while not generator.is_done():
        generator.generate_next_token()
        times.append(time.perf_counter() - began)
    return [times] * len(requests)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
