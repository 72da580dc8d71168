"""Texts of mixed length: 8 to 250 tokens, median 28, of English words that are one token each."""

import re
from pathlib import Path

import numpy as np
import tokenizers

__all__ = ["mixed_texts", "text_of"]

_MEDIAN, _SPREAD, _LEAST, _MOST = 28, 0.75, 8, 250
_NUM_SPECIAL = 2
_SAMPLES = Path(__file__).parents[1] / "builder/enginehouse_builder/demo/topics/train.tsv"


def mixed_texts(tokenizer_file: Path, count: int) -> list[str]:
    """Always the same texts, of log-normally distributed lengths."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(_MEDIAN), _SPREAD, count)).clip(_LEAST, _MOST)
    words = _words(tokenizer_file)
    return [_text(words, int(length), random) for length in lengths]


def text_of(tokenizer_file: Path, num_tokens: int) -> str:
    """One text of exactly that many tokens, special tokens included."""
    return _text(_words(tokenizer_file), num_tokens, np.random.default_rng(1))


def _words(tokenizer_file: Path) -> list[str]:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    found = sorted(set(re.findall(r"[a-z]+", _SAMPLES.read_text(encoding="utf-8").lower())))
    return [w for w in found if len(tokenizer.encode(w, add_special_tokens=False).ids) == 1]


def _text(words: list[str], num_tokens: int, random: np.random.Generator) -> str:
    return " ".join(random.choice(words, num_tokens - _NUM_SPECIAL))
