import threading
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from enginehouse_server.errors import RepositoryError
from enginehouse_server.text import Encoding, TextInput, TokenizeJob, Tokenizer, TokenizerThread

WORDS = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4, "c": 5}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    made.enable_padding(length=16)  # what a file may bring along must not count
    made.enable_truncation(4)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def test_the_files_own_padding_and_truncation_are_off(file: Path) -> None:
    [found] = Tokenizer(file, 8).encode([TextInput("a b c a b c")])
    assert found == Encoding([0, 3, 4, 5, 3, 4, 5, 1], None, 8)


def test_pairs_have_type_ids(file: Path) -> None:
    [found] = Tokenizer(file, 8).encode([TextInput("a", "b c")])
    assert found == Encoding([0, 3, 1, 4, 5, 1], [0, 0, 0, 1, 1, 1], 6)


def test_truncation_is_by_request_and_tells_the_full_length(file: Path) -> None:
    tokenizer = Tokenizer(file, 4)
    long, short = TextInput("a b c a"), TextInput("a")
    assert [len(e.ids) for e in tokenizer.encode([long, short])] == [6, 3]
    cut, kept = tokenizer.encode([long, short], truncate=True)
    assert (cut.ids, cut.full_length) == ([0, 3, 4, 1], 6)
    assert (kept.ids, kept.full_length) == ([0, 3, 1], 3)


def test_the_longer_text_of_a_pair_is_cut_first(file: Path) -> None:
    [found] = Tokenizer(file, 6).encode([TextInput("a a a a", "b")], truncate=True)
    assert found.ids == [0, 3, 3, 1, 4, 1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(RepositoryError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer(path, 8)


def test_the_thread_answers_each_job_and_outlives_a_bad_one(file: Path) -> None:
    found: dict[int, object] = {}
    done = threading.Semaphore(0)

    def keep(request_id: int, encodings: object) -> None:
        found[request_id] = encodings
        done.release()

    thread = TokenizerThread(Tokenizer(file, 8), keep)
    thread.submit(TokenizeJob(1, [TextInput("a")], truncate=False))
    thread.submit(TokenizeJob(2, [TextInput(None)], truncate=False))  # type: ignore[arg-type]
    thread.submit(TokenizeJob(3, [TextInput("b")], truncate=False))
    for _ in range(3):
        assert done.acquire(timeout=10)
    thread.close()
    assert found[1] == [Encoding([0, 3, 1], None, 3)]
    assert isinstance(found[2], Exception)
    assert found[3] == [Encoding([0, 4, 1], None, 3)]
