"""The first stage: finds the original model, by hub id or in a folder, and looks it over.

Weights are read from safetensors alone: a pickle runs whatever code its author put into it. The
model's own Python code is left alone too unless the build allows it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from .adapter import Adapter, read_adapter
from .errors import ResolveError, SpecError, UnsupportedModelError
from .hub import fetch
from .manifest import NAME_PATTERN, Source
from .memory import check_memory
from .spec import BuildSpec, Task
from .weights import num_weights, weights_sha256

__all__ = ["Resolved", "resolve"]

_HEAD = re.compile(r"For[A-Z]\w*$|LMHead")  # of a class that has one, whatever it was trained for
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


class _Kind(NamedTuple):
    """What transformers calls the models of a task."""

    suffix: str
    noun: str
    auto_class: str
    classes: Mapping[str, object]  # by type of model


_KINDS: Mapping[Task, _Kind] = {
    "classify": _Kind(
        "ForSequenceClassification",
        "sequence classifier",
        "AutoModelForSequenceClassification",
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    "generate": _Kind(
        "ForCausalLM",
        "causal language model",
        "AutoModelForCausalLM",
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ),
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """An original model, on this machine.

    Attributes:
        folder: Holds configuration, weights as safetensors, and tokenizer.
        source: Where it came from.
        config: Its configuration.
        task: What it is built for.
        name: Name that it is served under.
        adapter: What is yet to be merged into the weights.
    """

    folder: Path
    source: Source
    config: PretrainedConfig
    task: Task
    name: str
    adapter: Adapter | None = None


def resolve(spec: BuildSpec, report: Callable[[str], None]) -> Resolved:
    """Finds the model, fetching it from the hub if it is not a folder.

    Args:
        spec: Of it, model, revision, name, task, adapter and trust_remote_code are read.
        report: Is told what goes on.

    Raises:
        SpecError: The name or the task cannot be meant, or the model is too large for the memory.
        ResolveError: The model cannot be found, fetched or trusted.
        UnsupportedModelError: It is of a kind that cannot be converted.
    """
    name = _name(spec)
    adapter = None if spec.adapter is None else read_adapter(spec.adapter)
    if _is_folder(spec.model):
        folder, origin, revision = _folder(spec), Path(spec.model).resolve().name, ""
    else:
        report(f"fetching {spec.model}")
        snapshot = fetch(spec.model, spec.revision, with_code=spec.trust_remote_code)
        folder, origin, revision = snapshot.folder, spec.model, snapshot.commit
    config = _config(folder, spec)
    task = spec.task or _task(config, spec)
    _check_head(config, spec, task)
    architecture = _architecture(config, spec, task)
    _check_tokenizer_files(folder, spec)
    check_memory(num_weights(folder, spec.model), spec.model)
    report("hashing the weights")
    source = Source(origin, revision, weights_sha256(folder, spec.model), architecture)
    if adapter is not None:
        source = _with_adapter(source, adapter)
    return Resolved(folder, source, config, task, name, adapter)


def _with_adapter(source: Source, adapter: Adapter) -> Source:
    r"""The source of merged weights: SHA-256 over `weights <base's>\nadapter <adapter's>\n`."""
    listing = f"weights {source.sha256}\nadapter {adapter.sha256}\n"
    return replace(
        source,
        id=f"{source.id} + {adapter.name}",
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )


def _is_folder(model: str) -> bool:
    return model.startswith((".", "/", "~")) or Path(model).is_dir()


def _folder(spec: BuildSpec) -> Path:
    folder = Path(spec.model).expanduser().resolve()
    if spec.revision is not None:
        raise SpecError(
            f"--revision {spec.revision} is for models of the hub; {spec.model} is a folder"
        )
    if not folder.is_dir():
        raise ResolveError(f"there is no folder {folder}")
    return folder


def _name(spec: BuildSpec) -> str:
    if spec.name is not None:
        if not NAME_PATTERN.fullmatch(spec.name):
            raise SpecError(f"--name {spec.name!r} does not match {NAME_PATTERN.pattern}")
        return spec.name
    last = Path(spec.model).expanduser().resolve().name if _is_folder(spec.model) else spec.model
    name = re.sub(r"[^a-z0-9._-]", "-", last.rsplit("/", maxsplit=1)[-1].lower())
    if not NAME_PATTERN.fullmatch(name):
        raise SpecError(
            f"no name can be made of {spec.model!r} ({name!r} does not match "
            f"{NAME_PATTERN.pattern}): give one with --name"
        )
    return name


def _config(folder: Path, spec: BuildSpec) -> PretrainedConfig:
    document = _read_config(folder, spec)
    kind = document.get("model_type")
    has_code = "auto_map" in document
    if not has_code and kind is None:
        raise ResolveError(
            f"{spec.model}: config.json names no model_type; the folder must hold a model in "
            "the form that save_pretrained writes"
        )
    if not (has_code and spec.trust_remote_code) and kind not in transformers.CONFIG_MAPPING:
        if has_code:
            raise UnsupportedModelError(
                f"{spec.model} is of type {kind!r}, which needs Python code that comes with the "
                "model. Read that code, and if you trust it build with --trust-remote-code"
            )
        raise UnsupportedModelError(
            f"{spec.model} is of type {kind!r}, which transformers "
            f"{transformers.__version__} does not know"
        )
    if spec.trust_remote_code:
        _check_code(document, spec)
    quantized = document.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedModelError(
            f"{spec.model} is quantized already ({method}): give the model it was made from, "
            "and choose the precision with --precision"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=spec.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # configurations validate themselves in many ways
        raise ResolveError(f"{spec.model}: config.json is refused: {error}") from error
    return cast(PretrainedConfig, config)


def _check_code(document: dict[str, object], spec: BuildSpec) -> None:
    """Refuses code that is not the model's own: it was not fetched, and has no fixed revision."""
    named = document.get("auto_map")
    places = [str(place) for place in named.values()] if isinstance(named, dict) else []
    elsewhere = next((place for place in places if "--" in place), None)
    if elsewhere is not None:
        repository, _, name = elsewhere.partition("--")
        raise UnsupportedModelError(
            f"{spec.model} keeps its Python code in another repository, {repository}, which "
            f"--trust-remote-code does not reach. Put that code ({name}) beside the model in a "
            f"folder, take '{repository}--' out of auto_map in config.json, and build the folder"
        )


def _read_config(folder: Path, spec: BuildSpec) -> dict[str, object]:
    file = folder / "config.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResolveError(
            f"{spec.model} has no config.json; it must hold a model in the form that "
            "save_pretrained writes"
        ) from None
    except (OSError, ValueError) as error:
        raise ResolveError(f"{spec.model}: config.json cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ResolveError(f"{spec.model}: config.json holds no object")
    return document


def _task(config: PretrainedConfig, spec: BuildSpec) -> Task:
    named = config.architectures or []
    found: set[Task] = {task for task in _KINDS for name in named if _is_of(task, name)}
    if len(found) == 1:
        return found.pop()
    names = ", ".join(named) or "no architecture"
    if found:
        raise SpecError(f"{spec.model} can do more than one thing ({names}): choose with --task")
    kinds = " or ".join(f"…{kind.suffix}" for kind in _KINDS.values())
    options = " or ".join(f"--task {kind}" for kind in _KINDS)
    raise SpecError(
        f"what {spec.model} does is not known: its config.json names {names}, and only "
        f"{kinds} can be built. If it holds a trained head all the same, say {options}"
    )


def _is_of(task: Task, architecture: str) -> bool:
    kind = _KINDS[task]
    return architecture.endswith(kind.suffix) or architecture in kind.classes.values()


def _check_head(config: PretrainedConfig, spec: BuildSpec, task: Task) -> None:
    """Refuses a head of another task: this one's may have the same weights' names."""
    heads = [name for name in config.architectures or [] if _HEAD.search(name)]
    if heads and not any(_is_of(task, name) for name in heads):
        raise SpecError(
            f"{spec.model} cannot be built with --task {task}: its config.json names "
            f"{', '.join(heads)}, a head that was trained for something else. If its weights are "
            f"those of a …{_KINDS[task].suffix} all the same, correct `architectures` there"
        )


def _architecture(config: PretrainedConfig, spec: BuildSpec, task: Task) -> str:
    """The model's class, from the configuration or from transformers."""
    kind = _KINDS[task]
    own_code = (getattr(config, "auto_map", None) or {}) if spec.trust_remote_code else {}
    built_in = kind.classes.get(config.model_type)
    remote = own_code.get(kind.auto_class)
    if remote is None and built_in is None:
        raise UnsupportedModelError(
            f"transformers has no {kind.noun} for models of type {config.model_type!r}"
        )
    return str(remote).rsplit(".", maxsplit=1)[-1] if remote else str(built_in)


def _check_tokenizer_files(folder: Path, spec: BuildSpec) -> None:
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise ResolveError(
            f"{spec.model} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}): save the "
            "one it was trained with into the same folder"
        )
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResolveError(f"{spec.model}: tokenizer.json cannot be read: {error}") from error
