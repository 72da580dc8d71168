"""Asks the server what it serves, before it is put under load."""

from enginehouse_client.aio import AsyncClient
from enginehouse_client.errors import NotReadyError
from enginehouse_client.messages import Model

from .records import Served
from .settings import RunSettings

__all__ = ["ask_model", "served_from_model"]


async def ask_model(settings: RunSettings) -> Model:
    """The model that a load is meant for.

    Raises:
        EnginehouseError: If there is none, or the server cannot be reached.
    """
    async with AsyncClient(settings.target, timeout_s=settings.timeout_s) as client:
        return await client.get_model(settings.model, settings.version)


def served_from_model(model: Model) -> Served:
    """What the report says of the model.

    Raises:
        NotReadyError: If it does not answer requests.
    """
    if model.engine is None:
        raise NotReadyError(f"{model.name}/{model.version} is {model.state}: {model.reason}")
    engine = model.engine
    return Served(
        model=model.name,
        version=model.version,
        source=model.source,
        backend=engine.backend,
        target=engine.target,
        precision=engine.precision,
        runtime_version=engine.runtime_version,
        device=engine.device,
    )
