"""The first stage: finds the original model, by hub id or in a folder, and looks it over.

Weights are read from safetensors alone: a pickle runs whatever code its author put into it. The
model's own Python code is left alone too unless the build allows it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from .errors import ResolveError, SpecError, UnsupportedModelError
from .hub import fetch
from .manifest import NAME_PATTERN, Source
from .spec import BuildSpec, Task
from .weights import weights_sha256

__all__ = ["Resolved", "resolve"]

_CLASSIFIER = "ForSequenceClassification"
_HEAD = re.compile(r"For[A-Z]\w*$|LMHead")  # of a class that has one, whatever it was trained for
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


@dataclass(frozen=True, slots=True)
class Resolved:
    """An original model, on this machine.

    Attributes:
        folder: Holds configuration, weights as safetensors, and tokenizer.
        source: Where it came from.
        config: Its configuration.
        task: What it is built for.
        name: Name that it is served under.
    """

    folder: Path
    source: Source
    config: PretrainedConfig
    task: Task
    name: str


def resolve(spec: BuildSpec, report: Callable[[str], None]) -> Resolved:
    """Finds the model, fetching it from the hub if it is not a folder.

    Args:
        spec: Of it, model, revision, name, task and trust_remote_code are read.
        report: Is told what goes on.

    Raises:
        SpecError: The name or the task cannot be meant.
        ResolveError: The model cannot be found, fetched or trusted.
        UnsupportedModelError: It is of a kind that cannot be converted.
    """
    name = _name(spec)
    if _is_folder(spec.model):
        folder, origin, revision = _folder(spec), Path(spec.model).resolve().name, ""
    else:
        report(f"fetching {spec.model}")
        snapshot = fetch(spec.model, spec.revision, with_code=spec.trust_remote_code)
        folder, origin, revision = snapshot.folder, spec.model, snapshot.commit
    config = _config(folder, spec)
    task = spec.task or _task(config, spec)
    _check_head(config, spec)
    architecture = _architecture(config, spec)
    _check_tokenizer_files(folder, spec)
    report("hashing the weights")
    source = Source(origin, revision, weights_sha256(folder, spec.model), architecture)
    return Resolved(folder, source, config, task, name)


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
    if any(architecture.endswith(_CLASSIFIER) for architecture in named):
        return "classify"
    found = ", ".join(named) or "no architecture"
    raise SpecError(
        f"what {spec.model} does is not known: its config.json names {found}, and only "
        f"…{_CLASSIFIER} can be built. If it holds a trained classification head all the same, "
        "say --task classify"
    )


def _check_head(config: PretrainedConfig, spec: BuildSpec) -> None:
    """Refuses a head of another task: the classifier's may have the same weights' names."""
    heads = [name for name in config.architectures or [] if _HEAD.search(name)]
    if heads and not any(name.endswith(_CLASSIFIER) for name in heads):
        raise SpecError(
            f"{spec.model} cannot be built with --task classify: its config.json names "
            f"{', '.join(heads)}, a head that was trained for something else. If its weights are "
            f"those of a …{_CLASSIFIER} all the same, correct `architectures` there"
        )


def _architecture(config: PretrainedConfig, spec: BuildSpec) -> str:
    """The classifier's class, from the configuration or from transformers."""
    own_code = (getattr(config, "auto_map", None) or {}) if spec.trust_remote_code else {}
    built_in = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    remote = own_code.get("AutoModelForSequenceClassification")
    if remote is None and built_in is None:
        raise UnsupportedModelError(
            f"transformers has no sequence classifier for models of type {config.model_type!r}"
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
