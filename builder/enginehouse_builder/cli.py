"""The subcommands `build` and `demo`. What is heavy is imported when a command runs."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from .ending import ending_cleanly

if TYPE_CHECKING:
    from .rebuild import RebuildSpec
    from .spec import BuildSpec

__all__ = ["build", "demo"]

F = TypeVar("F", bound=Callable[..., object])
PrecisionName = Literal["fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8"]
CacheName = Literal["fp32", "bf16", "fp16", "u8"]
TaskName = Literal["classify", "generate"]

_PREFIX = "enginehouse-"  # of folders that vanish
_COUNT = click.IntRange(min=1)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_PRECISION = click.Choice(["fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8"])
_CACHE_PRECISION = click.Choice(["fp32", "bf16", "fp16", "u8"])
_TASK = click.Choice(["classify", "generate"])
_ONLY_OF_ORIGINALS = (  # what a rebuild takes from the version
    *("model", "task", "revision", "adapter", "max_tokens", "max_batch", "max_batch_tokens"),
    *("certify_minutes", "samples", "trust_remote_code"),
)


def _option(
    flag: str,
    meaning: str,
    kind: "click.ParamType[Any] | None" = None,
    default: object = None,
    variable: str = "",
) -> Callable[[F], F]:
    """An option that ENGINEHOUSE_<NAME> sets too."""
    return click.option(
        flag,
        help=meaning,
        type=kind,
        default=default,
        envvar=variable or _variable(flag),
        show_envvar=True,
        show_default=default is not None,
    )


def _switch(flag: str, meaning: str) -> Callable[[F], F]:
    return click.option(flag, is_flag=True, help=meaning, envvar=_variable(flag), show_envvar=True)


def _variable(flag: str) -> str:
    return "ENGINEHOUSE_" + flag.removeprefix("--").upper().replace("-", "_")


def _common(command: F) -> F:
    """The options of every command that builds."""
    for option in (
        _switch("--quiet", "Show nothing but errors and the version's folder."),
        _option("--threads", "Processor threads to measure with.  [default: all allowed]", _COUNT),
        _option(
            "--cache-dir",
            "Folder of stage results, shared by all builds, pruned to 20 GiB.",
            _FOLDER,
            Path.home() / ".cache" / "enginehouse",
            "ENGINEHOUSE_CACHE",
        ),
        _option("--repository", "Folder to publish into.", _FOLDER, Path("repository")),
        _option(
            "--precision",
            "Arithmetic of the engines; of a decoder in int8 or int4, its weights alone.",
            _PRECISION,
            "fp32",
        ),
        _option(
            "--optimization-level",
            "How long TensorRT looks for faster kernels.",
            click.IntRange(0, 5),
            3,
        ),
        _option(
            "--workspace",
            "Most GPU memory that a TensorRT kernel may use beside its tensors, MiB.  "
            "[default: all]",
            _COUNT,
        ),
        click.option(
            "--target",
            multiple=True,
            metavar="TARGET[=PRECISION]",
            help="What to build for: openvino, onnxruntime, tensorrt:sm90, "
            "tensorrt-rtx:sm89,sm120, tensorrt-rtx:any, or auto for all that this machine can "
            "use; may be given several times.  [default: openvino; with a GPU auto]",
            envvar="ENGINEHOUSE_TARGET",
            show_envvar=True,
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Turn a Hugging Face model into a certified engine.")
@_option("--model", "Hub id, or folder in save_pretrained form.")
@_option(
    "--name",
    "Name to serve it under; with --rebuild NAME or NAME=VERSION.  [default: from the model]",
)
@_switch(
    "--rebuild",
    "Make more engines of a published version, from its own canonical graph, as its next version.",
)
@_option("--task", "What it does.  [default: from the model]", _TASK)
@_option("--revision", "Branch, tag or commit on the hub.  [default: its default branch]")
@_option("--adapter", "Folder of a LoRA adapter, in peft's form, to merge into the model.", _FOLDER)
@_option(
    "--cache-precision",
    "A decoder's cached keys and values.  [default: fp32 with --precision fp32, else u8]",
    _CACHE_PRECISION,
)
@_option(
    "--max-tokens",
    "Longest text, tokens; of a decoder, prompt and answer together.  [default: the model's "
    "limit, at most 512, or 4096 of a decoder]",
    _COUNT,
)
@click.option(
    "--max-batch",
    "--slots",
    "max_batch",
    help="Most texts in one batch; of a decoder, most sequences at once.",
    type=_COUNT,
    default=32,
    show_default=True,
    envvar="ENGINEHOUSE_MAX_BATCH",
    show_envvar=True,
)
@_option(
    "--max-batch-tokens",
    "Most texts times padded length in one batch, tokens; of a decoder, most new tokens in one "
    "step.  [default: --max-tokens, at least 1024, with a target on a GPU 8192; of a decoder 512]",
    _COUNT,
)
@_option(
    "--certify-minutes",
    "How long a decoder's original may answer more prompts than its certificate needs; one "
    "past a window or a rope's original length that takes longer (and over a minute) lowers "
    "--max-tokens.",
    click.FloatRange(min=0),
    2.0,
)
@_option(
    "--samples",
    "File to certify and calibrate on: UTF-8, one text a line, a tab before the second text of a "
    "pair.  [default: built-in texts]",
    _FILE,
)
@_switch("--trust-remote-code", "Run the model's own Python code. It can do anything you can.")
@_common
@click.pass_context
def build(  # noqa: PLR0913, PLR0917 - click passes every option by name
    context: click.Context,
    model: str | None,
    name: str | None,
    rebuild: bool,
    task: TaskName | None,
    revision: str | None,
    adapter: Path | None,
    cache_precision: CacheName | None,
    max_tokens: int | None,
    max_batch: int,
    max_batch_tokens: int | None,
    certify_minutes: float,
    samples: Path | None,
    trust_remote_code: bool,
    target: tuple[str, ...],
    optimization_level: int,
    workspace: int | None,
    precision: PrecisionName,
    repository: Path,
    cache_dir: Path,
    threads: int | None,
    quiet: bool,
) -> None:
    """Turn a Hugging Face model into an engine, prove it against the original, and publish it.

    The version's folder is printed. Every option can be given as a variable too. Exit codes: 0
    published, 1 failed, 2 wrong usage, 130 interrupted; nothing is published unless 0.
    """
    _let_threads_sleep()
    with ending_cleanly("build"):
        from .rebuild import RebuildSpec
        from .spec import BuildSpec

        if rebuild:
            named, version = _version_of(context, name)
            _rebuild(
                RebuildSpec(
                    name=named,
                    version=version,
                    repository=repository,
                    cache=cache_dir,
                    target=target,
                    precision=precision,
                    cache_precision=cache_precision,
                    num_threads=threads,
                    optimization_level=optimization_level,
                    workspace_bytes=_bytes(workspace),
                ),
                quiet=quiet,
            )
            return
        if model is None:
            raise click.UsageError("Missing option '--model', or --rebuild with --name.")
        _build(
            BuildSpec(
                model=model,
                repository=repository,
                cache=cache_dir,
                name=name,
                task=task,
                revision=revision,
                adapter=adapter,
                target=target,
                precision=precision,
                cache_precision=cache_precision,
                max_tokens=max_tokens,
                max_batch=max_batch,
                max_batch_tokens=max_batch_tokens,
                certify_minutes=certify_minutes,
                samples=samples,
                trust_remote_code=trust_remote_code,
                num_threads=threads,
                optimization_level=optimization_level,
                workspace_bytes=_bytes(workspace),
            ),
            quiet=quiet,
        )


@click.command(short_help="Train and build the demo models.")
@_switch("--no-generate", "Leave out the writer, which takes two minutes to train.")
@_common
def demo(  # noqa: PLR0913, PLR0917 - click passes every option by name
    no_generate: bool,
    target: tuple[str, ...],
    optimization_level: int,
    workspace: int | None,
    precision: PrecisionName,
    repository: Path,
    cache_dir: Path,
    threads: int | None,
    quiet: bool,
) -> None:
    """Train two small models on this machine and build them: `topics` and `writer`.

    The first tells what a sentence is about, the second tells stories. Nothing is fetched: texts
    and the encoder that the first starts from are Python packages. Takes some minutes.
    """
    _let_threads_sleep()
    with (
        ending_cleanly("demo", extra="demo"),
        tempfile.TemporaryDirectory(prefix=_PREFIX) as folder,
    ):
        from .demo import DemoError, demo_sources
        from .display import Display
        from .errors import BuildError
        from .spec import BuildSpec

        display = Display(quiet=quiet)
        try:
            for source in demo_sources(
                Path(folder), cache_dir, display, with_writer=not no_generate
            ):
                spec = BuildSpec(
                    model=str(source.folder),
                    repository=repository,
                    cache=cache_dir,
                    name=source.name,
                    target=target,
                    precision=precision,
                    num_threads=threads,
                    optimization_level=optimization_level,
                    workspace_bytes=_bytes(workspace),
                )
                _build(spec, quiet=quiet)
        except DemoError as error:
            raise BuildError(str(error)) from error


def _let_threads_sleep() -> None:
    """Keeps torch's threads, soon to be imported, from spinning while they wait for each other.

    Where something else runs too, spinning takes the very processor that is waited for: measured
    40 times slower on a small model and 4 times on MiniLM, with two processors and a load of 4.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _version_of(context: click.Context, name: str | None) -> tuple[str, int | None]:
    """The model and version that a rebuild names.

    Raises:
        UsageError: None is named, or something is said that the version has said already.
    """
    said = [
        option.opts[0]
        for option in context.command.params
        if option.name in _ONLY_OF_ORIGINALS
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if said:
        raise click.UsageError(
            f"--rebuild takes {', '.join(said)} from the version: leave that out, or build the "
            "model again without --rebuild."
        )
    found = re.fullmatch(r"([a-z0-9][a-z0-9._-]{0,62})(?:=([1-9]\d*))?", name or "")
    if found is None:
        raise click.UsageError(
            f"--rebuild needs --name NAME or NAME=VERSION of a published version, not {name!r}."
        )
    return found[1], int(found[2]) if found[2] else None


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes << 20


def _rebuild(spec: "RebuildSpec", *, quiet: bool) -> None:
    from .display import Display
    from .rebuild import rebuild as rebuild_version

    click.echo(str(rebuild_version(spec, Display(quiet=quiet)).folder))


def _build(spec: "BuildSpec", *, quiet: bool) -> None:
    from .display import Display
    from .pipeline import build as build_version

    click.echo(str(build_version(spec, Display(quiet=quiet)).folder))
