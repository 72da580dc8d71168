"""Makes more engines of a published version, from its own canonical graph: no original, no torch.

    verify ▶ quantize ▶ compile ▶ certify ▶ measure ▶ publish

The answers that engines are judged by are the version's own reference file. What comes out is the
next version: new engines, the others as they were, their certificates too. Files that do not change
are the same files on disk, where the file system lets two folders have one.
"""

import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.decoder import CachePrecision
from enginehouse_server.engine.threads import available_threads
from enginehouse_server.text import TextInput, Tokenizer

from .cache import Cache
from .certify import read_continuations, read_reference
from .display import Display
from .errors import ResolveError, SpecError
from .inspect.find import find_version
from .inspect.verify import fault_of
from .manifest import DecoderEngine, Engine, File, Manifest, StageTime
from .publish import Item, Published, check_repository
from .settings import check_numbers, check_targets, described, probe_host
from .sources import DecoderSource, EncoderSource, content_key
from .stages import CompileSettings, Result, Workplace
from .targets import Target, Targets, targets_of
from .tasks.building import Building
from .tasks.decoder import build_decoders
from .tasks.encoder import build_encoders
from .tasks.publish import publish_parts
from .version_files import Kept, Origin, Parts, ProvenClassifier, ProvenGenerator

__all__ = ["RebuildSpec", "rebuild"]


@dataclass(frozen=True, slots=True)
class RebuildSpec:
    """More engines of a version, as the command line or a caller asks for them.

    Attributes:
        name: Of the model.
        repository: Where its versions are, and where the next one goes.
        cache: Folder of stage results.
        version: Which is taken; None is the newest.
        target: As of a build; none is everything that can be built for this machine.
        precision: Of targets without one of their own.
        cache_precision: Of a decoder's cached keys and values; None is each engine's own.
        num_threads: Processor threads to measure with; None is what this process may use.
        optimization_level: Of plans, 0 to 5.
        workspace_bytes: Of plans: most memory of the GPU beside their tensors; None for all.
    """

    name: str
    repository: Path
    cache: Path
    version: int | None = None
    target: tuple[str, ...] = ()
    precision: Precision = "fp32"
    cache_precision: CachePrecision | None = None
    num_threads: int | None = None
    optimization_level: int = 3
    workspace_bytes: int | None = None

    @property
    def command(self) -> str:
        """A command that does the same elsewhere, up to its targets."""
        name = self.name if self.version is None else f"{self.name}={self.version}"
        return shlex.join(["enginehouse", "build", "--rebuild", "--name", name])


def rebuild(spec: RebuildSpec, display: Display) -> Published:
    """Publishes a successor with the engines that are asked for.

    Returns:
        The successor; the version itself where it has everything already.

    Raises:
        BuildError: It cannot be done; nothing was published.
    """
    check_numbers({"--threads": spec.num_threads, "--workspace": spec.workspace_bytes})
    folder, manifest = _found(spec)
    host = probe_host(spec.target)
    asked = targets_of(spec.target, spec.precision, host, spec.command).for_task(manifest.task)
    chosen = _missing(asked, manifest)
    for reason in asked.left_out:
        display.note(f"auto leaves out {reason}")
    if not chosen:
        display.note(
            f"{manifest.model} version {manifest.version} has every engine that this machine can "
            "use; name a --target to make one again"
        )
        return Published(folder, manifest)
    devices = described(chosen, host)
    check_targets(chosen, host, devices, spec.cache_precision)
    check_repository(spec.repository)
    times: list[StageTime] = []
    with Cache(spec.cache, report=display.note) as cache:
        place = Workplace(
            cache=cache,
            host=host,
            targets=chosen,
            devices=devices,
            num_threads=spec.num_threads or available_threads(),
            compiling=CompileSettings(spec.optimization_level, spec.workspace_bytes),
        )
        building = Building(place, display, times)
        _verify(building, folder, manifest)
        parts = _parts(building, folder, manifest, spec.cache_precision)
        return publish_parts(building, spec.repository, parts)


def _found(spec: RebuildSpec) -> tuple[Path, Manifest]:
    """The version and its manifest.

    Raises:
        SpecError: There is none.
    """
    path = spec.repository / spec.name
    version = find_version(path if spec.version is None else path / str(spec.version))
    if version is None or version.manifest is None:
        fault = "" if version is None else version.fault
        raise SpecError(
            fault
            or f"{path} holds no version of a model to rebuild: build one with "
            f"'enginehouse build --name {spec.name} --model …'"
        )
    return version.folder, version.manifest


def _missing(asked: Targets, manifest: Manifest) -> tuple[Target, ...]:
    """Those that are named, and of the others those that the version has not."""
    there = {engine.target for engine in manifest.built}
    return tuple(t for t in asked.chosen if t.is_named or t.name not in there)


def _verify(building: Building, folder: Path, manifest: Manifest) -> None:
    """Proves that what engines are made from and judged by is as it was published.

    Raises:
        ResolveError: It is not.
    """
    started = time.perf_counter()
    files = (*manifest.canonical, *manifest.text, manifest.reference)
    with building.stage("verify") as stage:
        stage.report(f"hashing {len(files)} files")
        faults = [fault for file in files if (fault := fault_of(folder / file.path, file))]
        if faults:
            raise ResolveError(
                f"{folder} is damaged, so nothing can be made from it: {'; '.join(faults)}. Copy "
                "it again, or build the model again from its original"
            )
        stage.result = f"{manifest.model} version {manifest.version}, {manifest.source.id}"
    building.times.append(StageTime("verify", round(time.perf_counter() - started, 3)))


def _parts(
    building: Building,
    folder: Path,
    manifest: Manifest,
    cache_precision: CachePrecision | None,
) -> Parts:
    proven: ProvenClassifier | ProvenGenerator
    if manifest.generate is not None:
        decoder = _decoder_source(folder, manifest)
        engines = build_decoders(building, decoder, cache_precision)
        proven = ProvenGenerator(decoder.task, engines)
    else:
        encoder = _encoder_source(folder, manifest)
        proven = ProvenClassifier(encoder.task, encoder.buckets, build_encoders(building, encoder))
    common = (*manifest.canonical, *manifest.text, manifest.reference)
    made = {engine.target.name for engine in proven.engines}
    there: tuple[Engine | DecoderEngine, ...] = (*manifest.engines, *manifest.decoders)
    kept = [engine for engine in there if engine.target not in made]
    own = {file.path: file for engine in kept for file in engine.files}
    for file in common:
        own.pop(file.path, None)
    return Parts(
        model=manifest.model,
        origin=Origin(
            source=manifest.source,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            folder=folder,
            items=_linked(folder, common),
        ),
        limits=manifest.limits,
        proven=proven,
        kept=Kept(tuple(kept), _linked(folder, own.values()), manifest.tools),
    )


def _linked(folder: Path, files: Iterable[File]) -> tuple[Item, ...]:
    return tuple(
        Item(file.path, folder / file.path, file.sha256, may_be_linked=True) for file in files
    )


def _encoder_source(folder: Path, manifest: Manifest) -> EncoderSource:
    assert manifest.classify is not None, "a manifest has what its task needs"
    reference = read_reference(folder / manifest.reference.path)
    tokenizer = Tokenizer(_tokenizer_file(folder, manifest), manifest.limits.max_tokens)
    texts = [TextInput(answer.text, answer.text_pair) for answer in reference.answers]
    return EncoderSource(
        folder=folder,
        key=_key(manifest),
        inputs=manifest.inputs,
        task=manifest.classify,
        limits=manifest.limits,
        buckets=manifest.buckets,
        rows=tokenizer.encode(texts, truncate=True),
        reference=Result(reference, folder, manifest.reference.sha256, 0.0),
    )


def _decoder_source(folder: Path, manifest: Manifest) -> DecoderSource:
    assert manifest.generate is not None, "a manifest has what its task needs"
    reference = read_continuations(folder / manifest.reference.path)
    return DecoderSource(
        folder=folder,
        key=_key(manifest),
        inputs=manifest.inputs,
        task=manifest.generate,
        limits=manifest.limits,
        reference=Result(reference, folder, manifest.reference.sha256, 0.0),
    )


def _key(manifest: Manifest) -> str:
    return content_key({file.path: file.sha256 for file in manifest.canonical})


def _tokenizer_file(folder: Path, manifest: Manifest) -> Path:
    return next(folder / f.path for f in manifest.text if f.path.endswith("/tokenizer.json"))
