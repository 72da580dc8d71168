"""Certifies a plan on this machine that did not run on such a device where it was built.

Its certificate is of the same graph on another runtime, or of another device. The version's
reference file has the original's own answers, so no transformers is needed to find out how far the
engine is from them; at most what its certificate allows. The result is kept, so that it is found
out once.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from enginehouse_builder.manifest import BuiltEngine, Certificate, GenerateCertificate, Manifest
from enginehouse_server.engine.base import EncoderEngine
from enginehouse_server.engine.decoder import DecoderEngine
from enginehouse_server.errors import ProbeError, RepositoryError

from .state import LocalCertificate, StateFolder, Trial
from .verify import verify_files
from .version import name_of

__all__ = ["Deviation", "certify_here", "is_certified_elsewhere", "read_reference_with"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Deviation(NamedTuple):
    """How far an engine is from the original.

    Attributes:
        reference: What the original was run by.
        num_compared: Inputs or prompts; 0 where none fits into the limits.
        error: Greatest difference of a logit; not a number if the engine gave none.
    """

    reference: str
    num_compared: int
    error: float


def is_certified_elsewhere(built: BuiltEngine, device: str) -> bool:
    """Whether the certificate of a plan that runs on a device is of another device or runtime."""
    plan = built.plan
    return plan is not None and (plan.certified == "lowered" or built.device != device)


def certify_here(
    engine: EncoderEngine | DecoderEngine,
    built: BuiltEngine,
    certificate: Certificate | GenerateCertificate,
    manifest: Manifest,
    state: StateFolder,
    measure: Callable[[], Deviation],
    *,
    driver: str,
    limits: str,
) -> None:
    """Holds an engine to what its certificate allows.

    Args:
        engine: Loaded and warm.
        built: What the manifest says of it.
        certificate: Of the other runtime or device.
        manifest: Of the version.
        state: Where the result is kept.
        measure: Finds out; not called where it is known.
        driver: Version of the device's.
        limits: What decides how much of the reference file is compared.

    Raises:
        ProbeError: The engine is further from the original, or nothing was compared.
    """
    name, allowed = name_of(manifest), certificate.tolerance * certificate.scale
    [digest] = [file.sha256 for file in built.files if file.path == built.model]
    runtime = f"{engine.backend} {engine.runtime_version}"
    trial = Trial(digest, manifest.reference.sha256, runtime, engine.device, driver, limits)
    found = state.recall(trial)
    if found is None:
        reference, num_compared, error = measure()
        if not num_compared:
            raise ProbeError(
                f"{name}: nothing of its reference file fits into the limits, so that nothing "
                f"proves the engine of {built.target} here: raise --max-tokens, "
                "--max-sequence-tokens or --cache-memory"
            )
        found = LocalCertificate(
            name,
            *trial,
            reference=reference,
            num_compared=num_compared,
            max_abs_error=error if np.isfinite(error) else None,
            allowed=allowed,
        )
        state.keep(found)
    # Another version may have the same engine.
    found = replace(found, model=name, allowed=allowed)
    if not found.is_passed:
        kept = state.file_of(trial)
        raise ProbeError(
            f"{_summary(found)}: build {built.target} again on this machine, or in a wider "
            "precision" + (f" (to try it again as it is, delete {kept})" if kept else "")
        )
    _log.info("%s", _summary(found))


def read_reference_with(read: Callable[[Path], T], folder: Path, manifest: Manifest) -> T:
    """The version's reference file, verified.

    Raises:
        RepositoryError: It is missing, damaged, or of another form.
    """
    verify_files(folder, [manifest.reference])
    try:
        return read(folder / manifest.reference.path)
    except ValueError as error:
        raise RepositoryError(f"{folder / manifest.reference.path}: {error}") from error


def _summary(found: LocalCertificate) -> str:
    error = "no number" if found.max_abs_error is None else f"{found.max_abs_error:.3g}"
    return (
        f"{found.model}: {found.runtime} on {found.device} is {error} away from {found.reference} "
        f"in a logit, over {found.num_compared} inputs; {found.allowed:.3g} is allowed"
    )
