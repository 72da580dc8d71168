"""Requests made before the run, so that sending one costs as little as can be."""

import random

from enginehouse.v1.inference_service_pb2 import ClassifyInput, ClassifyRequest

from .settings import LoadSettings

__all__ = ["make_payloads"]


def make_payloads(settings: LoadSettings) -> list[bytes]:
    """Serialized requests; each text begins one of them."""
    texts = list(settings.texts)
    random.Random(settings.seed).shuffle(texts)
    return [
        ClassifyRequest(
            model=settings.model,
            version=settings.version,
            truncate=True,
            inputs=[
                ClassifyInput(text=texts[(start + i) % len(texts)])
                for i in range(settings.texts_per_request)
            ],
        ).SerializeToString()
        for start in range(0, len(texts) * settings.texts_per_request, settings.texts_per_request)
    ]
