"""Which tokens may come next so that the text fits a JSON schema, an expression or a choice.

The grammars are llguidance's: it walks the tokenizer's own vocabulary as bytes, and needs nothing
but tokenizer.json. What it computes of a grammar is kept for the next request with the same one.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from enginehouse_server.errors import InvalidRequestError, RepositoryError

__all__ = ["StructureCompiler", "StructureMatcher", "StructureSpec"]

_MAX_CACHED, _MAX_CACHED_CHARACTERS = 64, 1 << 20  # grammars, and what they were made from
_MAX_REASON = 300  # characters


class StructureSpec(NamedTuple):
    """What the text must look like.

    Attributes:
        kind: How to read `source`.
        source: A JSON schema, a regular expression, or a JSON list of choices.
    """

    kind: Literal["json_schema", "regex", "choices"]
    source: str


class StructureMatcher:
    """How far one text has come in its grammar. Belongs to one sequence."""

    def __init__(
        self,
        grammar: LLMatcher,
        first: NDArray[np.int32],
        vocab_size: int,
        end_ids: frozenset[int],
    ) -> None:
        """Starts a text.

        Args:
            grammar: At its beginning.
            first: The tokens that may come first, as bits; kept.
            vocab_size: Width of logits.
            end_ids: Tokens that end a text.
        """
        self._grammar, self._vocab_size, self.end_ids = grammar, vocab_size, end_ids
        self._bits = first
        self._is_filled = True

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end may follow."""
        return self._grammar.is_stopped() and not self._grammar.is_error()

    def accept(self, token: int) -> None:
        """Goes on by a token that was allowed."""
        self._grammar.consume_token(token)
        self._is_filled = False

    def fill(self) -> None:
        """Finds the tokens that may come next, unless it has."""
        if not self._is_filled:
            _fill(self._grammar, self._bits)
            self._is_filled = True

    def banned(self) -> NDArray[np.bool_]:
        """Which tokens must not come next, `[vocab]`.

        Raises:
            InvalidRequestError: The grammar grew beyond what it may cost.
        """
        self.fill()
        if self._grammar.is_error():
            reason = self._grammar.get_error().splitlines()[0]
            raise InvalidRequestError(
                f"the structure cannot be followed any further: {reason}; simplify it", "structure"
            )
        bits = np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little")
        is_banned: NDArray[np.bool_] = bits == 0
        return is_banned


class _Compiled(NamedTuple):
    """A grammar at its beginning, and the tokens that may come first, as bits."""

    grammar: LLMatcher
    first: NDArray[np.int32]


class StructureCompiler:
    """Makes grammars of what requests ask for. Any thread may call."""

    def __init__(self, tokenizer_json: Path, vocab_size: int, eos_ids: Collection[int]) -> None:
        """Reads the vocabulary, which takes a second for the largest.

        Args:
            tokenizer_json: The model's tokenizer.
            vocab_size: Width of the logits.
            eos_ids: Tokens that end a text, at least one.

        Raises:
            RepositoryError: The grammars cannot work with this tokenizer.
        """
        self._vocab_size, self._end_ids = vocab_size, frozenset(eos_ids)
        try:
            source = tokenizer_json.read_text(encoding="utf-8")
            self._tokenizer = LLTokenizer(source, n_vocab=vocab_size, eos_token=sorted(eos_ids))
        except (OSError, ValueError) as error:
            raise RepositoryError(
                f"{tokenizer_json} does not serve structured output: {error}"
            ) from error
        self._lock = threading.Lock()  # guards the cache
        self._compiled: OrderedDict[StructureSpec, _Compiled] = OrderedDict()

    def compile(self, spec: StructureSpec) -> StructureMatcher:
        """Makes a matcher at the beginning of a text.

        The first time for a spec may take as long as a second, the tokens that may come first
        included, so not on a thread that others wait for; after that it takes microseconds.

        Raises:
            InvalidRequestError: The source is wrong, or asks for what is not supported.
        """
        with self._lock:
            found = self._compiled.get(spec)
            if found is not None:
                self._compiled.move_to_end(spec)
        if found is None:
            found = self._compile(spec)
            with self._lock:
                self._compiled[spec] = found
                self._forget_oldest()
        grammar, first = found.grammar.deep_copy(), found.first.copy()
        return StructureMatcher(grammar, first, self._vocab_size, self._end_ids)

    def _forget_oldest(self) -> None:
        # A grammar takes memory in proportion to its source.
        size = sum(len(spec.source) for spec in self._compiled)
        while len(self._compiled) > _MAX_CACHED or size > _MAX_CACHED_CHARACTERS:
            spec, _ = self._compiled.popitem(last=False)
            size -= len(spec.source)

    def _compile(self, spec: StructureSpec) -> _Compiled:
        first = np.zeros((self._vocab_size + 31) // 32, np.int32)
        matcher: LLMatcher | None = None
        try:
            matcher = LLMatcher(self._tokenizer, _grammar(spec), log_level=0)
            if not (reason := matcher.get_error()):
                _fill(matcher, first)
                reason = matcher.get_error()
        except ValueError as error:
            reason = str(error)
        if matcher is None or reason:
            reason = " ".join(reason.split())[:_MAX_REASON]
            raise InvalidRequestError(
                f"the structure's {spec.kind} cannot be used: {reason}", f"structure.{spec.kind}"
            )
        return _Compiled(matcher, first)


def _fill(grammar: LLMatcher, bits: NDArray[np.int32]) -> None:
    """Sets the bits of the tokens that may come next: of a large grammar, milliseconds."""
    grammar.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)


def _grammar(spec: StructureSpec) -> str:
    if spec.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(spec.source)
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.source)
    choices = json.loads(spec.source)
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
        raise ValueError("it must be a list of at least one text")
    if "" in choices:
        raise ValueError("an empty text cannot be chosen")
    return LLMatcher.grammar_from_lark(
        "start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices)
    )
