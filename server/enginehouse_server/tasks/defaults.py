"""The model's own wishes for sampling, brought into the ranges that requests must keep to."""

import logging
from dataclasses import asdict, replace

from enginehouse_server.errors import InvalidRequestError

from .generate_checks import SamplingDefaults, check_sampling
from .generate_request import SamplingWish

__all__ = ["usable_defaults"]

_log = logging.getLogger(__name__)


def usable_defaults(given: SamplingDefaults, name: str) -> SamplingDefaults:
    """What can count where a request says nothing; what cannot is left out, with a warning.

    Args:
        given: As the model's makers wrote it down. A negative top_k is their way to say none.
        name: Of the model, for the log.
    """
    plain = SamplingDefaults()
    usable = replace(given, top_k=max(0, given.top_k))
    for field, value in asdict(usable).items():
        try:
            check_sampling(SamplingWish(**{field: value}), vocab_size=0)
        except InvalidRequestError as error:
            fallback = getattr(plain, field)
            _log.warning("%s: the model's own %s; %g counts instead", name, error, fallback)
            usable = replace(usable, **{field: fallback})
    return usable
