"""The demo writer: its tokenizer, a training cut short, and, when there is time, the whole one."""

import math
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from enginehouse_builder.cache import Cache
from enginehouse_builder.demo import sources
from enginehouse_builder.demo.composer import Document, compose
from enginehouse_builder.demo.error import DemoError
from enginehouse_builder.demo.muon import Muon
from enginehouse_builder.demo.sources import cached_writer
from enginehouse_builder.demo.storybook import read_storybook
from enginehouse_builder.demo.training import Rows, WriterPlan, loss_of, untrained
from enginehouse_builder.demo.vocabulary import BEGIN, END, encode, make_tokenizer
from enginehouse_builder.demo.writer import WriterReport, make_writer, read_report

SHORT = WriterPlan(
    vocab_size=512,
    hidden_size=64,
    num_layers=2,
    max_tokens=256,
    row_tokens=64,
    num_rows=4,
    num_steps=30,
    max_perplexity=500.0,
)
CHAT = [
    {"role": "user", "content": "Who is Mara?"},
    {"role": "assistant", "content": "Mara is the lighthouse keeper."},
    {"role": "user", "content": "Where is she?"},
]


class Trained(NamedTuple):
    folder: Path
    found: WriterReport
    reported: list[str]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    book = read_storybook()
    return list(islice(compose(book, book.plots, book.passages, 5), 600))


@pytest.fixture(scope="module")
def tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    texts = [d.text or d.turns[-1].text for d in documents]
    return make_tokenizer(texts, vocab_size=1024, max_tokens=512)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("writer")
    reported: list[str] = []
    found = make_writer(folder, plan=SHORT, num_threads=1, report=reported.append)
    return Trained(folder, found, reported)


@pytest.mark.parametrize(
    "text",
    [
        "Mara climbed the hundred steps.",
        "  two spaces,\ta tab\n\nand two lines ",
        "Zürich, 東京, Ελλάδα, 😀 \u0301 \ufeff",
        "",
        'He said, "Don\'t!" {"a": 1.5}',
    ],
)
def test_text_comes_back_byte_for_byte(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_name_is_the_same_token_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.tokenize("Mara asked: who is Mara? Mara.")
    assert tokens.count("Mara") == 3
    assert "ĠMara" not in tokens


def test_composed_texts_come_back(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast
) -> None:
    for document in documents:
        if document.text:
            ids = encode(tokenizer, document)
            assert tokenizer.decode(ids) == BEGIN + document.text + END


def test_text_alone_begins_with_the_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Mara")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1:] == tokenizer("Mara", add_special_tokens=False)["input_ids"]


def test_chat_is_rendered_turn_by_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == (
        "<|begin|><|user|>Who is Mara?<|end|>"
        "<|assistant|>Mara is the lighthouse keeper.<|end|>"
        "<|user|>Where is she?<|end|><|assistant|>"
    )


def test_marks_of_a_chat_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 2
    assert ids.count(tokenizer.eos_token_id) == 3
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")


def test_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="not robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "beep"}], tokenize=False)


def test_documents_of_a_row_do_not_see_each_other(tokenizer: PreTrainedTokenizerFast) -> None:
    model = untrained(SHORT, tokenizer).eval()
    first, second = (torch.randint(len(tokenizer), (1, 9)) for _ in range(2))
    positions = torch.arange(9)[None]
    both = Rows(torch.cat([first, second], dim=1), torch.cat([positions, positions], dim=1))
    other = Rows(torch.cat([first.flip(1), second], dim=1), both.positions)
    alone = loss_of(model, Rows(second, positions)).item() * 8
    assert _sum_of_last(model, both, 8) == pytest.approx(alone, rel=1e-5)
    assert _sum_of_last(model, other, 8) == pytest.approx(alone, rel=1e-5)


def test_muon_steps_are_orthogonal() -> None:
    torch.manual_seed(0)
    shapes = [(24, 16), (12, 16), (24, 16), (16, 24)]
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    before = list[torch.Tensor]()
    optimizer = Muon(weights, lr=1.0, weight_decay=0.0)
    for _ in range(2):  # what went before is remembered for each by itself
        before = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.randn(weight.shape) * torch.logspace(-1, 1, weight.shape[1])
        optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        moved = weight.detach() - old
        lengths = torch.linalg.svdvals(moved) / max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
        assert lengths.min() > 0.5
        assert lengths.max() < 1.3


def test_muon_moves_a_matrix_as_it_would_alone() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 24, 16) for _ in range(2)]
    together = [torch.nn.Parameter(torch.zeros(24, 16)) for _ in range(3)]
    alone = torch.nn.Parameter(torch.zeros(24, 16))
    optimizers = [Muon(together, lr=0.1, weight_decay=0.1), Muon([alone], lr=0.1, weight_decay=0.1)]
    for gradient in gradients:
        for weight, own in zip(together, gradient, strict=True):
            weight.grad = own
        alone.grad = gradient[1]
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together[1], alone)


@pytest.mark.slow
def test_short_training_learns(trained: Trained) -> None:
    assert trained.found.first_loss == pytest.approx(math.log(SHORT.vocab_size), rel=0.1)
    assert trained.found.last_loss < trained.found.first_loss - 0.5


@pytest.mark.slow
def test_progress_ends_with_the_perplexities(trained: Trained) -> None:
    assert f"{trained.found.perplexity:.2f}" in trained.reported[-1]


@pytest.mark.slow
def test_saved_folder_loads_and_predicts_what_was_measured(trained: Trained) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained.folder)
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.num_key_value_heads <= model.config.num_attention_heads
    assert model.generation_config.do_sample
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([tokenizer("The sea was calm. ")["input_ids"]])
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < math.log(SHORT.vocab_size)
    assert tokenizer.chat_template


@pytest.mark.slow
def test_same_seed_trains_the_same(trained: Trained, tmp_path: Path) -> None:
    make_writer(tmp_path, plan=SHORT, num_threads=1, report=lambda _: None)
    weights = "model.safetensors"
    assert (tmp_path / weights).read_bytes() == (trained.folder / weights).read_bytes()


@pytest.mark.slow
def test_report_is_kept_with_the_model(trained: Trained) -> None:
    assert read_report(trained.folder) == trained.found


@pytest.mark.slow
def test_bad_writer_is_not_saved(tmp_path: Path) -> None:
    hopeless = WriterPlan(
        vocab_size=300, hidden_size=64, num_layers=1, row_tokens=32, num_rows=1, num_steps=30
    )
    with pytest.raises(DemoError, match="more than the 5 it may have"):
        make_writer(tmp_path / "writer", plan=hopeless, num_threads=1, report=lambda _: None)
    assert not (tmp_path / "writer").exists()


@pytest.mark.slow
def test_writer_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_short(folder: Path, *, report: object) -> WriterReport:
        del report
        return make_writer(folder, plan=SHORT, num_threads=1, report=lambda _: None)

    monkeypatch.setattr(sources, "make_writer", make_short)
    first = cached_writer(Cache(tmp_path), report=lambda _: None)
    second = cached_writer(Cache(tmp_path), report=lambda _: None)
    assert (first.was_made, second.was_made) == (True, False)
    assert second.folder == first.folder
    assert second.report == first.report


@pytest.mark.slow
@pytest.mark.wide
def test_whole_training_writes_and_answers(tmp_path: Path) -> None:
    found = make_writer(tmp_path, report=lambda _: None)
    assert found.perplexity < 5
    assert (tmp_path / "model.safetensors").stat().st_size < 30e6
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    answer = model.generate(inputs=ids, max_new_tokens=40, do_sample=False)  # type: ignore[misc]
    assert "the lighthouse keeper" in tokenizer.decode(answer[0])


def _sum_of_last(model: LlamaForCausalLM, rows: Rows, number: int) -> float:
    """The losses of a row's last tokens, out of those of the whole row and of what is before."""
    num_losses = rows.ids.shape[1] - 1
    before = Rows(rows.ids[:, :-number], rows.positions[:, :-number])
    whole = loss_of(model, rows).item() * num_losses
    return whole - loss_of(model, before).item() * (num_losses - number)
