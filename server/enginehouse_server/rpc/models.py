"""The model service: what there is to ask, and how it runs."""

from enginehouse.v1 import model_service_pb2 as pb
from enginehouse.v1.model_service_pb2_grpc import ModelServiceServicer
from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.repository import Catalog
from enginehouse_server.telemetry import Metrics

from .call import Call, Context
from .convert_model import model_message

__all__ = ["Models"]


class Models(ModelServiceServicer):
    """Describes models to callers."""

    def __init__(self, catalog: Catalog, metrics: Metrics) -> None:
        self._catalog, self._metrics = catalog, metrics

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Every model, also those that cannot be served."""
        async with Call("ListModels", context, self._metrics):
            return pb.ListModelsResponse(models=[model_message(e) for e in self._catalog])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """One model."""
        async with Call("GetModel", context, self._metrics):
            if not request.model:
                raise InvalidRequestError("model is empty; name the model to describe", "model")
            version = request.version if request.HasField("version") else None
            return pb.GetModelResponse(
                model=model_message(self._catalog.find(request.model, version))
            )
