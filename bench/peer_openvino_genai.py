"""OpenVINO GenAI's pipeline with continuous batching, obeying lines on standard input.

Runs in an environment of its own. Each line is a workload as JSON, the answer the times of tokens.
"""

import json
import os
import sys
import time
from collections import deque
from typing import TypedDict

import numpy as np
import openvino as ov
import openvino_genai as genai

__all__: list[str] = []

_CACHE_GB = 2


class _Request(TypedDict):
    due_s: float
    prompt: list[int]
    num_new: int


def main(model: str, num_threads: int) -> None:
    """Loads the model, with the precisions that the server has, and obeys."""
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = _CACHE_GB
    scheduler.enable_prefix_caching = True
    properties = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "u8",
    }
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
    answers.write("ready\n")
    first_id = 0
    for line in sys.stdin:
        requests = json.loads(line)
        answers.write(json.dumps(_replay(pipeline, requests, first_id)) + "\n")
        first_id += len(requests)


def _replay(
    pipeline: genai.ContinuousBatchingPipeline, requests: list[_Request], first_id: int
) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in requests]
    waiting = deque(enumerate(requests))
    handles: dict[int, genai.GenerationHandle] = {}
    began = time.perf_counter()
    while waiting or handles:
        while waiting and waiting[0][1]["due_s"] <= time.perf_counter() - began:
            index, request = waiting.popleft()
            prompt = ov.Tensor(np.array([request["prompt"]], dtype=np.int64))
            handles[index] = pipeline.add_request(first_id + index, prompt, _greedy(request))
        if not handles:
            time.sleep(max(0.0, waiting[0][1]["due_s"] - (time.perf_counter() - began)))
            continue
        pipeline.step()
        now = time.perf_counter() - began
        for index in list(handles):
            while handles[index].can_read():
                for output in handles[index].read().values():
                    times[index] += [now] * len(output.generated_ids)
            if len(times[index]) >= requests[index]["num_new"]:
                del handles[index]
    return times


def _greedy(request: _Request) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = request["num_new"]
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
