import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from enginehouse_server.errors import InvalidRequestError, RepositoryError
from enginehouse_server.sampling import (
    SamplingSettings,
    SamplingState,
    StructureCompiler,
    StructureSpec,
    choose,
)
from tests.fixtures.bytes_tokenizer import EOS, write_tokenizer

VOCAB = 352  # wider than the tokenizer, as models' logits often are
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"enum": [1, 12, 123]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    write_tokenizer(file)
    return file


@pytest.fixture(scope="module")
def compiler(tokenizer_file: Path) -> StructureCompiler:
    return StructureCompiler(tokenizer_file, VOCAB, [EOS])


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(tokenizer_file))


def generate(
    compiler: StructureCompiler, spec: StructureSpec, seed: int, min_new_tokens: int = 0
) -> list[int]:
    """Tokens of a model that knows nothing, until the end of the text."""
    asked = SamplingSettings(
        seed=seed, min_new_tokens=min_new_tokens, banned_until_min=frozenset({EOS})
    )
    state = SamplingState(asked, [7], structure=compiler.compile(spec))
    random = np.random.default_rng(seed)
    for _ in range(400):
        state.prepare()
        logits = random.normal(0, 2, (1, VOCAB)).astype(np.float32)
        [choice] = choose(logits, [state])
        assert choice.error is None
        if choice.token == EOS:
            return state.tokens[1:]
        state.append(choice.token)
    raise AssertionError("the text did not end")


@pytest.mark.parametrize("seed", range(10))
def test_a_text_fits_its_schema(
    compiler: StructureCompiler, tokenizer: tokenizers.Tokenizer, seed: int
) -> None:
    # A model that knows nothing would put blanks between two tokens for ever.
    schema = {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}
    spec = StructureSpec("json_schema", json.dumps(schema))
    value = json.loads(tokenizer.decode(generate(compiler, spec, seed)))
    assert set(value) == {"name", "age"}
    assert len(value["name"]) <= 8
    assert value["age"] in {1, 12, 123}


@pytest.mark.parametrize("seed", range(10))
def test_a_text_matches_its_expression(
    compiler: StructureCompiler, tokenizer: tokenizers.Tokenizer, seed: int
) -> None:
    pattern = r"(yes|no), [0-9]{2,4}\.[a-fé]+x"
    text = tokenizer.decode(generate(compiler, StructureSpec("regex", pattern), seed))
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("seed", range(10))
def test_a_text_is_one_of_the_choices(
    compiler: StructureCompiler, tokenizer: tokenizers.Tokenizer, seed: int
) -> None:
    choices = ["yes", "yes and no", 'ü"\\n', "日本\n", "a|b"]
    spec = StructureSpec("choices", json.dumps(choices))
    assert tokenizer.decode(generate(compiler, spec, seed)) in choices


def test_a_complete_text_ends_even_before_the_minimum(
    compiler: StructureCompiler, tokenizer: tokenizers.Tokenizer
) -> None:
    spec = StructureSpec("choices", '["yes", "no"]')
    assert tokenizer.decode(generate(compiler, spec, 1, min_new_tokens=50)) in {"yes", "no"}


def test_a_matcher_is_complete_when_only_an_end_may_follow(
    compiler: StructureCompiler, tokenizer: tokenizers.Tokenizer
) -> None:
    matcher = compiler.compile(StructureSpec("choices", '["yes"]'))
    for token in tokenizer.encode("yes").ids:
        assert not matcher.is_complete
        matcher.accept(token)
    assert matcher.is_complete
    assert np.flatnonzero(~matcher.banned()).tolist() == [EOS]


def test_matchers_of_one_grammar_go_their_own_ways(
    compiler: StructureCompiler, tokenizer: tokenizers.Tokenizer
) -> None:
    spec = StructureSpec("choices", '["yes", "no"]')
    first, second = compiler.compile(spec), compiler.compile(spec)
    [token] = tokenizer.encode("no").ids
    first.accept(token)
    assert first.is_complete
    assert not second.is_complete
    assert not second.banned()[token]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (StructureSpec("json_schema", '{"type": "objec"}'), "objec"),
        (StructureSpec("json_schema", '{"type"'), "expected"),
        (StructureSpec("json_schema", '{"unevaluatedItems": 3, "type": "array"}'), "unevaluated"),
        (StructureSpec("regex", "(yes|no"), "unclosed group"),
        (StructureSpec("choices", "[]"), "at least one"),
        (StructureSpec("choices", '[""]'), "empty"),
        (StructureSpec("choices", "yes"), "cannot be used"),
    ],
)
def test_a_wrong_source_is_refused_by_the_name_of_its_field(
    compiler: StructureCompiler, spec: StructureSpec, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as raised:
        compiler.compile(spec)
    assert raised.value.field == f"structure.{spec.kind}"


def test_a_tokenizer_without_bytes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a")).save(str(file))
    with pytest.raises(RepositoryError, match="structured output"):
        StructureCompiler(file, 2, [1])


def test_grammars_bring_in_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, enginehouse_server.sampling.structure;"
        "assert not sys.modules.keys() & {'torch', 'transformers'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_kept_of_grammars_is_bounded_by_their_sources(tokenizer_file: Path) -> None:
    compiler = StructureCompiler(tokenizer_file, VOCAB, [EOS])
    specs = [StructureSpec("regex", f"a|{i}" + " " * 65_000) for i in range(20)]
    for spec in specs:
        compiler.compile(spec)
    kept = compiler._compiled
    assert list(kept) == specs[-len(kept) :]
    assert 15 * 65_000 < sum(len(spec.source) for spec in kept) <= 1 << 20
