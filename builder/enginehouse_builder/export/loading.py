"""The original model and tokenizer, loaded the same way for the export and for the reference.

The padding token is decided here. transformers' decoder-based classifiers answer at the last
token that is not `config.pad_token_id`, and at the very last one where the configuration names
none. Both are kept: a row is filled up with the configured token, and where there is none with
the tokenizer's (or, as any token does, its end of text).
"""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import logging as transformers_logging

from enginehouse_builder.errors import ResolveError, UnsupportedModelError
from enginehouse_builder.resolve import Resolved
from enginehouse_builder.spec import BuildSpec, Task

from .unread import check_unread

__all__ = [
    "configured_pad_id",
    "empty_model",
    "inputs_of",
    "load_model",
    "load_tokenizer",
    "pad_id",
    "quiet",
]


class _Role(NamedTuple):
    """What a task asks of a model."""

    auto_class: type[_BaseAutoModelClass]
    noun: str
    verb: str


_ROLES: Mapping[Task, _Role] = {
    "classify": _Role(
        transformers.AutoModelForSequenceClassification, "sequence classifier", "classify"
    ),
    "generate": _Role(transformers.AutoModelForCausalLM, "causal language model", "generate"),
}


def load_model(
    resolved: Resolved,
    spec: BuildSpec,
    attention: str | None = None,
    experts: str | None = None,
) -> PreTrainedModel:
    """Loads the model of the task in fp32, ready to answer.

    Args:
        resolved: Where it is, and what it is built for.
        spec: Says whether the model's own code may run.
        attention: Implementation of attention; None leaves it to transformers. Eager becomes
            another where it is not what the model was trained with.
        experts: Implementation of mixtures of experts, likewise.

    Raises:
        UnsupportedModelError: transformers has no such model, or the checkpoint lacks weights of
            it, which transformers would make up, or has those of another head.
        ResolveError: The weights cannot be read.
    """
    role = _ROLES[resolved.task]
    try:
        with quiet():
            model, found = role.auto_class.from_pretrained(
                resolved.folder,
                dtype=torch.float32,
                attn_implementation=_faithful(attention, resolved.config),
                experts_implementation=experts,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # a model's own code raises anything
        raise _loading_error(resolved, error) from error
    lost = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if lost:
        raise UnsupportedModelError(
            f"{resolved.source.id} lacks {len(lost)} weights of {type(model).__name__}: "
            f"{_list(sorted(lost))}; its answers would be random. Give a checkpoint that was "
            f"trained to {role.verb}"
        )
    check_unread(model, found["unexpected_keys"], resolved.source.id)
    model.eval().requires_grad_(False)
    return cast(PreTrainedModel, model)


def _faithful(attention: str | None, config: PretrainedConfig) -> str | None:
    """The implementation asked for, unless transformers' own of it is known to be another model's.

    Eager attention of Falcon adds ALiBi twice, as sdpa, which is its default, does not
    (huggingface/transformers#29946).
    """
    adds_twice = config.model_type == "falcon" and getattr(config, "alibi", False)
    return "sdpa" if adds_twice and attention == "eager" else attention


def empty_model(resolved: Resolved, spec: BuildSpec) -> PreTrainedModel:
    """The model without weights, to see what it is made of.

    Raises:
        UnsupportedModelError: transformers has no such model.
        ResolveError: Its code fails.
    """
    try:
        with quiet(), torch.device("meta"):
            model = _ROLES[resolved.task].auto_class.from_config(
                resolved.config, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # a model's own code raises anything
        raise _loading_error(resolved, error) from error
    return cast(PreTrainedModel, model)


def load_tokenizer(resolved: Resolved, spec: BuildSpec) -> PreTrainedTokenizerFast:
    """Loads the model's own tokenizer.

    Raises:
        UnsupportedModelError: It has no fast form, so no tokenizer.json can be written.
        ResolveError: Its files cannot be read.
    """
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                resolved.folder,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
    except Exception as error:  # a tokenizer's own code raises anything
        raise ResolveError(
            f"the tokenizer of {resolved.source.id} cannot be loaded: {_first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} of {resolved.source.id} has no fast form: no "
            "tokenizer.json can be written, and the server reads nothing else"
        )
    return cast(PreTrainedTokenizerFast, tokenizer)


def configured_pad_id(model: PreTrainedModel) -> int | None:
    """The padding token that the model itself knows; one that no text can have is none."""
    config = model.config.get_text_config()
    pad: int | None = getattr(config, "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < getattr(config, "vocab_size", pad + 1) else None


def pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that fills rows up."""
    candidates = (configured_pad_id(model), tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(c for c in candidates if isinstance(c, int))


def inputs_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """What the tokenizer gives and the model takes by that name."""
    taken = inspect.signature(model.forward).parameters
    return tuple(name for name in tokenizer.model_input_names if name in taken)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the warnings, logs and progress bars of torch and transformers."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    _show_progress_bars(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            _show_progress_bars(True)


def _show_progress_bars(shown: bool) -> None:
    set_shown: Callable[[], None] = (
        transformers_logging.enable_progress_bar
        if shown
        else transformers_logging.disable_progress_bar
    )
    set_shown()


def _loading_error(resolved: Resolved, error: Exception) -> Exception:
    kind, role = resolved.config.model_type, _ROLES[resolved.task]
    if "Unrecognized configuration class" in str(error):
        return UnsupportedModelError(f"transformers has no {role.noun} for models of type {kind!r}")
    if isinstance(error, ImportError):
        return UnsupportedModelError(
            f"{resolved.source.id} needs a package that is not installed: {_first_line(error)}"
        )
    return ResolveError(
        f"the weights of {resolved.source.id} cannot be loaded: {_first_line(error)}"
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _list(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
