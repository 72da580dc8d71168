import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from enginehouse_server.errors import DeadlineError, NotReadyError, RepositoryError
from enginehouse_server.text import Encoding, TextInput, TokenizeJob, Tokenizer, TokenizerThread
from tests.fixtures.tokenizer import GatedTokenizer

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


class Rig:
    """A tokenizer's thread, and what came of each request."""

    def __init__(self, file: Path) -> None:
        self.found: dict[int, object] = {}
        self.unwanted: set[int] = set()
        self.tokenizer = GatedTokenizer(file)
        self.tokenizer.gate.clear()
        self.thread = TokenizerThread(
            self.tokenizer, self.found.__setitem__, lambda i: i not in self.unwanted
        )

    def submit(self, request_id: int, *texts: str, deadline: float = float("inf")) -> None:
        inputs = [TextInput(text) for text in texts]
        self.thread.submit(TokenizeJob(request_id, inputs, truncate=False, deadline=deadline))

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not is_so() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert is_so()


@pytest.fixture
def rig(file: Path) -> Iterator[Rig]:
    rig = Rig(file)
    yield rig
    rig.tokenizer.gate.set()
    rig.thread.close()


def test_the_thread_answers_each_job_and_outlives_a_bad_one(rig: Rig) -> None:
    rig.submit(1, "a")
    rig.submit(2, None)  # type: ignore[arg-type]
    rig.submit(3, "b")
    rig.tokenizer.gate.set()
    rig.wait_for(lambda: len(rig.found) == 3)
    assert rig.found[1] == [Encoding([0, 3, 1], None, 3)]
    assert isinstance(rig.found[2], Exception)
    assert rig.found[3] == [Encoding([0, 4, 1], None, 3)]


def test_what_waits_for_the_thread_is_counted_until_it_is_passed_on(rig: Rig) -> None:
    rig.submit(1, "a", "b")
    rig.submit(2, "c")
    assert rig.thread.num_pending == 3
    rig.tokenizer.gate.set()
    rig.wait_for(lambda: set(rig.found) == {1, 2})
    assert rig.thread.num_pending == 0


def test_a_job_that_nobody_waits_for_is_not_tokenized(rig: Rig) -> None:
    for i, text in enumerate("abc"):
        rig.submit(i, text)
    rig.unwanted |= {1}
    rig.tokenizer.gate.set()
    rig.wait_for(lambda: set(rig.found) == {0, 2})
    assert rig.tokenizer.texts == ["a", "c"]


def test_a_job_that_is_too_late_is_not_tokenized_and_is_told(rig: Rig) -> None:
    rig.submit(1, "a")
    rig.submit(2, "b", deadline=time.monotonic() - 1)
    rig.tokenizer.gate.set()
    rig.wait_for(lambda: len(rig.found) == 2)
    assert isinstance(rig.found[2], DeadlineError)
    assert rig.tokenizer.texts == ["a"]


def test_closing_does_not_tokenize_what_waits_and_tells_it(rig: Rig) -> None:
    for i, text in enumerate("abc"):
        rig.submit(i, text)
    closing = threading.Thread(target=rig.thread.close)
    closing.start()
    rig.wait_for(lambda: rig.thread._is_closing)
    rig.tokenizer.gate.set()
    closing.join(10)
    assert rig.tokenizer.texts in (["a"], [])  # the first may have begun before
    assert {type(rig.found[i]) for i in (1, 2)} == {NotReadyError}
