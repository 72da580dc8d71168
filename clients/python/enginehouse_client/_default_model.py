"""Which model a command means that was not told one."""

from collections.abc import Iterable

from .errors import ModelNotFoundError
from .messages import Model

__all__ = ["only_ready_model"]


def only_ready_model(models: Iterable[Model], task: str) -> str:
    """Name of the one model of a task that answers.

    Raises:
        ModelNotFoundError: If none does, or several do.
    """
    models = tuple(models)
    ready = sorted(
        {model.name for model in models if model.task == task and model.state == "ready"}
    )
    if len(ready) == 1:
        return ready[0]
    if ready:
        raise ModelNotFoundError(f"several models serve: choose one by --model: {', '.join(ready)}")
    states = ", ".join(f"{model.name}/{model.version} is {model.state}" for model in models)
    raise ModelNotFoundError(f"no model answers {task} requests: {states or 'the server has none'}")
