"""The tokenizer's files as the server reads them, and proof that it reads them right."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_server.text import TextInput, Tokenizer

from .loading import quiet

__all__ = ["SAMPLES", "accepts_pairs", "check_tokenizer", "check_vocabulary", "save_tokenizer"]

SAMPLES = (
    "Hello world",
    "hello, WORLD!",
    "It's a test; they're sure we'd've left.",
    "  leading and trailing  ",
    "two  spaces\tand a tab\nand a line",
    "naïve café déjà vu, Straße, Ærøskøbing",
    "e\u0301 is not \u00e9 until normalised",
    "Привет, мир! Как дела?",
    "今日は天気がいい。我们去公园散步吧。",
    "오늘은 날씨가 좋아요",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "100,000.50 $ - 12.5% (2026-11-24) #1",
    "https://example.com/a?b=c&d=e user@example.com",
    "def f(x):\n    return x ** 2  # ok",
    "😀 👩‍👩‍👧 🇫🇷",
    "<s> </s> [CLS] [SEP] <pad> [PAD] <|endoftext|> <unk>",
    "a",
    "",
    "supercalifragilisticexpialidocious" * 3,
    "zero\u200bwidth non\u00a0breaking \ufb01 ligature",
)
_LONG = "words and more words, 12 of them. " * 40


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig, folder: Path
) -> None:
    """Writes tokenizer.json, its configuration and the model's into `folder`."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    with quiet():
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)


def check_tokenizer(
    folder: Path,
    original: PreTrainedTokenizerFast,
    max_tokens: int,
    *,
    pairs: bool,
    texts: Sequence[str] = SAMPLES,
) -> None:
    """Compares what the server makes of the written tokenizer.json with the original tokenizer.

    Args:
        folder: Where `save_tokenizer` wrote.
        original: The model's own.
        max_tokens: Length to cut to: cutting is compared too.
        pairs: Whether pairs of texts are compared too.
        texts: What is tokenized.

    Raises:
        UnsupportedModelError: A text gets other tokens; it is named. Or texts are cut on the left.
    """
    inputs = [TextInput(text) for text in (*texts, _LONG)]
    if pairs:
        # transformers takes an empty second text for none, so there is nothing to compare with.
        inputs += [TextInput(a, b) for a, b in pairwise(texts) if b]
        inputs += [TextInput(_LONG, texts[0]), TextInput(texts[0], _LONG)]
    if original.truncation_side != "right":
        raise UnsupportedModelError(
            f'{type(original).__name__} cuts long texts at truncation_side="left", and the server '
            'cuts at the end: set it to "right" in tokenizer_config.json if the model allows that'
        )
    found = Tokenizer(folder / "tokenizer.json", max_tokens).encode(inputs, truncate=True)
    takes_types = "token_type_ids" in original.model_input_names
    for source, encoding in zip(inputs, found, strict=True):
        expected = original(
            source.text, source.text_pair, truncation="longest_first", max_length=max_tokens
        )
        same = encoding.ids == expected["input_ids"]
        if takes_types:
            types = expected["token_type_ids"]
            same = same and (encoding.type_ids or [0] * len(types)) == types
        if not same:
            raise UnsupportedModelError(
                f"{type(original).__name__} does more than its tokenizer.json says: "
                f"{source.text[:40]!r} with {source.text_pair and source.text_pair[:40]!r} gets "
                f"{expected['input_ids'][:12]}, from the file alone {encoding.ids[:12]}"
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    """Refuses a tokenizer that has tokens for which the model has no embedding."""
    try:
        table = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # CANINE embeds hashes of characters
        return
    if not isinstance(table, Tensor):  # Perceiver's are not those of tokens
        return
    num_embeddings = table.shape[0]
    beyond = {t: i for t, i in tokenizer.get_vocab().items() if i >= num_embeddings}
    if beyond:
        token, number = min(beyond.items(), key=lambda item: item[1])
        raise UnsupportedModelError(
            f"the tokenizer has {len(beyond)} tokens that the model has no embedding for, first "
            f"{token!r} with id {number} of {num_embeddings}: a text with one would break it. "
            "Resize the model's embeddings, or remove the tokens"
        )


def accepts_pairs(
    tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig, *, takes_types: bool
) -> bool:
    """Whether the model can tell two texts from one: by a token between them, or by type."""
    single = tokenizer.num_special_tokens_to_add(pair=False)
    types = tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"]
    if takes_types and max(types) >= getattr(config, "type_vocab_size", 2):
        # DeBERTa has no types at all and ignores them; others have no row for the second.
        return getattr(config, "type_vocab_size", 2) == 0 and _adds_token(tokenizer, single)
    return _adds_token(tokenizer, single) or (takes_types and any(types))


def _adds_token(tokenizer: PreTrainedTokenizerFast, single: int) -> bool:
    return tokenizer.num_special_tokens_to_add(pair=True) > single
