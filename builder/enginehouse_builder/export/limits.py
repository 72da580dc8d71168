"""How many tokens a model takes, from its configuration, its position table and its tokenizer."""

from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from enginehouse_builder.errors import SpecError

from .rope import growing_limits, switching_lengths

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "decoder_max_tokens",
    "first_position",
    "max_tokens_of",
    "model_limit",
]

DEFAULT_MAX_TOKENS = 512
_DECODER_DEFAULT = 4096
_ABSURD = 10_000_000  # tokenizers that know no limit say 1e30
_POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def max_tokens_of(
    asked: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> int:
    """Longest row of the engine: what was asked for, else the model's limit, at most 512.

    Raises:
        SpecError: More was asked for than the model takes, or too little for a single word.
    """
    limit = model_limit(model, tokenizer)
    if asked is None:
        return DEFAULT_MAX_TOKENS if limit is None else min(DEFAULT_MAX_TOKENS, limit)
    if limit is not None and asked > limit:
        raise SpecError(f"--max-tokens {asked} is more than the {limit} that the model takes")
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if asked < least:
        raise SpecError(f"--max-tokens {asked} leaves no room for text: give at least {least}")
    return asked


def decoder_max_tokens(asked: int | None, model: PreTrainedModel) -> int:
    """Longest sequence of the engine: what was asked for, else the model's limit, at most 4096.

    Unasked it also stays where transformers' rope does not yet change with the text's length.

    Raises:
        SpecError: More was asked for than the model takes, or too little for an answer.
    """
    config = model.config.get_text_config()
    limits: list[int] = [
        *(growing_limits(config) or _position_limits(model)),
        *_branching_limits(config),
    ]
    limit = min(limits, default=None)
    if asked is None:
        return min([_DECODER_DEFAULT, *limits, *switching_lengths(config)])
    if limit is not None and asked > limit:
        raise SpecError(f"--max-tokens {asked} is more than the {limit} that the model takes")
    if asked < 2:
        raise SpecError(f"--max-tokens {asked} leaves no room for an answer: give at least 2")
    return asked


def model_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Most tokens of a row that the model was made for, None if there is no end."""
    config = model.config.get_text_config()
    limits = [
        *_position_limits(model),
        *_branching_limits(config),
        *switching_lengths(config),
    ]
    if tokenizer.model_max_length < _ABSURD:
        limits.append(tokenizer.model_max_length)
    return min(limits, default=None)


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token, as the model's own code counts."""
    return max([int(t.padding_idx or 0) + 1 for t in _padded_positions(model)], default=0)


def _position_limits(model: PreTrainedModel) -> Iterator[int]:
    config = model.config.get_text_config()
    if getattr(config, "relative_attention_num_buckets", None) is None:
        for field in _POSITION_FIELDS:
            value = _number(config, field)
            if value is not None and value > 0:
                yield value
    for table in _padded_positions(model):
        yield int(table.num_embeddings) - int(table.padding_idx or 0) - 1


def _padded_positions(model: PreTrainedModel) -> Iterator[nn.Embedding]:
    """Tables of positions of RoBERTa and its kin, which count from after the padding token's."""
    for name, module in model.named_modules():
        if not name.endswith("position_embeddings") or not isinstance(module, nn.Embedding):
            continue
        if module.padding_idx is not None:
            yield module


def _branching_limits(config: PretrainedConfig) -> Iterator[int]:
    """Lengths at which the model's code takes another branch, which a traced graph does not."""
    if getattr(config, "attention_type", None) == "block_sparse":
        yield int((5 + 2 * config.num_random_blocks) * config.block_size)
    index_topk = _number(config, "index_topk")  # as many tokens as this are all seen
    if index_topk is not None:
        yield index_topk


def _number(config: PretrainedConfig, field: str) -> int | None:
    try:
        value = getattr(config, field)
    except (AttributeError, NotImplementedError):
        return None
    return value if isinstance(value, int) else None
