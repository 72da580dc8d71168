"""The inference service: thin, every method converts, calls the model and converts back."""

from collections.abc import AsyncIterator
from functools import partial

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceServicer
from enginehouse_server.repository import Catalog, Entry
from enginehouse_server.tasks import Classifier
from enginehouse_server.telemetry import Metrics

from .call import Call, Context
from .convert import classify_request, classify_response
from .in_flight import InFlight
from .streaming import AnswerStream

__all__ = ["Inference"]


class Inference(InferenceServiceServicer):
    """Runs models for callers."""

    def __init__(self, catalog: Catalog, metrics: Metrics, in_flight: InFlight) -> None:
        self._catalog, self._metrics, self._in_flight = catalog, metrics, in_flight

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Labels for the texts of one request."""
        self._in_flight.hold(context)
        async with Call("Classify", context, self._metrics) as call:
            entry, classifier = self._choose(request)
            call.telemetry = classifier.telemetry
            return await _classify(entry, classifier, request, call)

    async def ClassifyStream(  # type: ignore[override]  # writes its answers itself
        self, request_iterator: AsyncIterator[pb.ClassifyStreamRequest], context: Context
    ) -> None:
        """Labels for requests as they come, each answered when it is done."""
        async with Call("ClassifyStream", context, self._metrics) as call:
            await call.metadata_sent()
            stream = AnswerStream(context, partial(self._answer_one, call), self._in_flight)
            await stream.run(request_iterator)

    async def _answer_one(
        self, call: Call, message: pb.ClassifyStreamRequest
    ) -> pb.ClassifyStreamResponse:
        """The answer to one request of a stream, be it an error."""
        with call.part() as part:
            entry, classifier = self._choose(message.request)
            part.telemetry = classifier.telemetry
            response = await _classify(entry, classifier, message.request, call)
            return pb.ClassifyStreamResponse(id=message.id, response=response)
        return pb.ClassifyStreamResponse(id=message.id, error=part.status)

    def _choose(self, request: pb.ClassifyRequest) -> tuple[Entry, Classifier]:
        version = request.version if request.HasField("version") else None
        label = request.version_label if request.HasField("version_label") else None
        return self._catalog.ready(request.model, version, label)


async def _classify(
    entry: Entry, classifier: Classifier, message: pb.ClassifyRequest, call: Call
) -> pb.ClassifyResponse:
    reply = await classifier.classify(classify_request(message, call.time_left_s))
    return classify_response(entry, classifier.traits.labels, reply)
