from pathlib import Path
from types import SimpleNamespace
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast, RoCBertConfig

from enginehouse_builder.export.decoder.generation import end_ids, generation_defaults
from enginehouse_builder.resolve import Resolved


def test_what_is_no_number_is_no_default(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text('{"top_k": Infinity, "top_p": NaN, "temperature": 0.5}', encoding="utf-8")
    found = generation_defaults(cast(Resolved, SimpleNamespace(folder=tmp_path)))
    assert (found.top_k, found.top_p, found.temperature) == (None, None, 0.5)


def test_a_configuration_without_an_end_of_text_leaves_it_to_the_tokenizer() -> None:
    config = RoCBertConfig()
    assert not hasattr(config, "eos_token_id")
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None), config=config)
    tokenizer = SimpleNamespace(eos_token_id=7)
    found = end_ids(
        cast(PreTrainedModel, model), cast(PreTrainedTokenizerFast, tokenizer), vocab_size=10
    )
    assert found == (7,)
