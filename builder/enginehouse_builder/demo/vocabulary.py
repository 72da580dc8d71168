"""The writer's tokenizer: byte-level BPE, made from the very texts that the writer learns.

Every text can be encoded and comes back byte for byte. Knows nothing of the model.
"""

from collections.abc import Iterable
from typing import cast

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from .composer import Document

__all__ = ["BEGIN", "END", "encode", "make_tokenizer"]

BEGIN = "<|begin|>"
END = "<|end|>"
_ROLES = ("system", "user", "assistant")
# As GPT-2's, but that a word with a capital never has the space before it: a name is the same token
# wherever it stands, so that a small model learns to say it again.
_WORDS = (
    r"'(?:[sdmt]|ll|ve|re)|\p{Lu}\p{L}*| ?(?!\p{Lu})\p{L}+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

_CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('a role is system, user or assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def make_tokenizer(
    texts: Iterable[str], *, vocab_size: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """Learns a vocabulary.

    Args:
        texts: What to learn it from.
        vocab_size: How many tokens there are in all, those of roles and bytes included.
        max_tokens: Longest sequence of the model that it is for.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = [BEGIN, END, *(f"<|{role}|>" for role in _ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # As with most decoders, a text alone begins with the first token; a chat says so itself.
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A $B",
        special_tokens=[(BEGIN, backend.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=special[2:],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> list[int]:
    """The tokens of a document, from its beginning to its end."""
    if not document.turns:
        return [*tokenizer(document.text)["input_ids"], cast(int, tokenizer.eos_token_id)]
    messages = [{"role": turn.role, "content": turn.text} for turn in document.turns]
    text = cast(str, tokenizer.apply_chat_template(messages, tokenize=False))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
