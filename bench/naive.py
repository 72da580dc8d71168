"""A naive server to compare with: grpc.aio, the same engine, one request at a time, no batching."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import uvloop

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1 import types_pb2 as types_pb
from enginehouse_server.engine.base import Shape
from enginehouse_server.engine.threads import available_threads
from enginehouse_server.repository import LoadSettings, load_classifier
from enginehouse_server.scheduler import EncoderWork
from enginehouse_server.tasks.scores import best_labels, scores
from enginehouse_server.text import TextInput

__all__: list[str] = []


class Naive:
    """Tokenizes and computes each text by itself, on one thread."""

    def __init__(self, version: Path) -> None:
        self._loaded = load_classifier(
            version, LoadSettings(num_threads=available_threads(), num_lanes=1)
        )
        self._pool = ThreadPoolExecutor(1)

    async def get_model(self, request: model_pb.GetModelRequest, _: object) -> object:
        """Says its name, which is what a load generator asks for."""
        manifest = self._loaded.manifest
        state = types_pb.MODEL_STATE_READY
        model = model_pb.Model(name=manifest.model, version=manifest.version, state=state)
        model.engine.backend = self._loaded.engine.backend
        return model_pb.GetModelResponse(model=model)

    async def classify(self, request: pb.ClassifyRequest, _: object) -> pb.ClassifyResponse:
        """Labels, one text after the other."""
        loop = asyncio.get_running_loop()
        results = [
            await loop.run_in_executor(self._pool, self._compute, source.text)
            for source in request.inputs
        ]
        return pb.ClassifyResponse(model=request.model, version=1, results=results)

    def _compute(self, text: str) -> pb.ClassifyResult:
        loaded = self._loaded
        [encoding] = loaded.tokenizer.encode([TextInput(text)])
        lane = loaded.engine.lanes[0]
        lane.start([EncoderWork(0, 0, encoding.ids)], Shape(1, len(encoding.ids)))
        best = best_labels(scores(lane.wait(), "softmax")[0], None)
        names = loaded.task.labels
        labels = [pb.Label(label=names[b.label], score=b.score, index=b.label) for b in best]
        return pb.ClassifyResult(labels=labels, num_tokens=len(encoding.ids))


async def serve(version: Path) -> None:
    """Serves until killed."""
    naive = Naive(version)
    classify = grpc.unary_unary_rpc_method_handler(
        naive.classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
    )
    get_model = grpc.unary_unary_rpc_method_handler(
        naive.get_model,
        model_pb.GetModelRequest.FromString,
        model_pb.GetModelResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            _service("enginehouse.v1.InferenceService", "Classify", classify),
            _service("enginehouse.v1.ModelService", "GetModel", get_model),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"naive: serving gRPC on 127.0.0.1:{port}, HTTP on nowhere", flush=True)
    await server.wait_for_termination()


def _service(name: str, method: str, handler: Any) -> Any:  # noqa: ANN401
    return grpc.method_handlers_generic_handler(name, {method: handler})


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
