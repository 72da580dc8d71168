"""Makes the demo writer: a small Llama that learns to tell the stories of one village.

It sees every composed text once. How well it writes is measured on texts that it never saw. Knows
nothing of engines: its result is an ordinary `save_pretrained` folder to build from.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from enginehouse_server.engine.threads import available_threads

from .composer import Document, Turn, compose, tell
from .error import DemoError
from .saving import save
from .storybook import Plot, Storybook, read_storybook
from .training import DEMO_PLAN, Rows, WriterPlan, fit, loss_of, untrained
from .vocabulary import encode, make_tokenizer

__all__ = ["REPORT_FILE", "WriterReport", "make_writer", "read_report"]

REPORT_FILE = "training.json"
_HELD_OUT_PLOTS = ("kite", "sick friend")
_HELD_OUT_PASSAGE_EVERY = 10

_MAX_THREADS = 8  # more only wait for each other at this size
_NUM_VOCABULARY_DOCUMENTS = 4000
_NUM_HELD_OUT_STORIES = 60
_SAMPLE_TOKENS = 240
_CHECK_SEED = 1_000_003  # far from the seeds of training


@dataclass(frozen=True, slots=True)
class WriterReport:
    """How the training went, and how well the writer predicts texts that it never saw.

    Attributes:
        num_parameters: Of the model.
        num_tokens: It learned from.
        seconds: The training took.
        first_loss: Mean of the first steps, nats per token.
        last_loss: Mean of the last steps.
        perplexity: Per token, of new stories with plots that it knows.
        perplexity_new_plots: The same of plots that it never saw.
        perplexity_passages: The same of hand-written texts that it never saw.
        sample: A story as it writes them.
    """

    num_parameters: int
    num_tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    perplexity: float
    perplexity_new_plots: float
    perplexity_passages: float
    sample: str


@dataclass(frozen=True, slots=True)
class _Shelf:
    """The texts, parted into those to learn and those to be measured on."""

    book: Storybook
    plots: tuple[Plot, ...]
    passages: tuple[str, ...]
    new_plots: tuple[Plot, ...]
    new_passages: tuple[str, ...]


def make_writer(
    folder: Path,
    *,
    plan: WriterPlan = DEMO_PLAN,
    seed: int = 0,
    num_threads: int | None = None,
    report: Callable[[str], None],
) -> WriterReport:
    """Trains the writer and saves it with its tokenizer and `training.json`, its report.

    Draws all its random numbers from `seed`: the same seed and number of threads give the same
    weights on processors of the same kind. Leaves torch's own generator and number of threads as
    they were.

    Args:
        folder: Where `save_pretrained` writes; made if absent.
        plan: Size and length of the training.
        seed: Where the random numbers start.
        num_threads: Processor threads; None is what this process may use, at most 8.
        report: Takes a line of progress at a time.

    Raises:
        DemoError: The texts cannot be read, or the writer did not become good enough, in which
            case nothing is saved.
    """
    started = time.perf_counter()
    shelf = _shelve(read_storybook())
    tokenizer = _tokenizer(shelf, plan, seed)
    with _computing(num_threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = untrained(plan, tokenizer)
        losses = fit(model, _rows(shelf, tokenizer, plan, seed), plan, report)
        model.eval()
        found = WriterReport(
            num_parameters=model.num_parameters(),
            num_tokens=plan.num_steps * plan.num_rows * plan.row_tokens,
            seconds=round(time.perf_counter() - started, 1),
            first_loss=fmean(losses[:5]),
            last_loss=fmean(losses[-20:]),
            perplexity=_perplexity(model, tokenizer, _new_stories(shelf, shelf.plots)),
            perplexity_new_plots=_perplexity(
                model, tokenizer, _new_stories(shelf, shelf.new_plots)
            ),
            perplexity_passages=_perplexity(model, tokenizer, shelf.new_passages),
            sample=_sample(model, tokenizer),
        )
    report(
        f"perplexity of new stories {found.perplexity:.2f}, of new plots "
        f"{found.perplexity_new_plots:.2f}, of new passages {found.perplexity_passages:.1f}"
    )
    if found.perplexity > plan.max_perplexity:
        raise DemoError(
            f"the writer's perplexity on new stories is {found.perplexity:.2f}, more than the "
            f"{plan.max_perplexity:g} it may have: try another seed"
        )
    save(model, tokenizer, folder)
    (folder / REPORT_FILE).write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")
    return found


def read_report(folder: Path) -> WriterReport:
    """The report of a writer that was saved before."""
    return WriterReport(**json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))


def _shelve(book: Storybook) -> _Shelf:
    every = _HELD_OUT_PASSAGE_EVERY
    return _Shelf(
        book=book,
        plots=tuple(plot for plot in book.plots if plot.name not in _HELD_OUT_PLOTS),
        passages=tuple(text for i, text in enumerate(book.passages) if i % every),
        new_plots=tuple(plot for plot in book.plots if plot.name in _HELD_OUT_PLOTS),
        new_passages=book.passages[::every],
    )


def _new_stories(shelf: _Shelf, plots: Sequence[Plot]) -> list[str]:
    rng = random.Random(_CHECK_SEED)
    return [tell(shelf.book, rng.choice(plots), rng) for _ in range(_NUM_HELD_OUT_STORIES)]


def _documents(shelf: _Shelf, seed: int) -> Iterator[Document]:
    return compose(shelf.book, shelf.plots, shelf.passages, seed)


def _tokenizer(shelf: _Shelf, plan: WriterPlan, seed: int) -> PreTrainedTokenizerFast:
    documents = islice(_documents(shelf, seed), _NUM_VOCABULARY_DOCUMENTS)
    texts = (text for d in documents for text in (d.text, *(turn.text for turn in d.turns)))
    return make_tokenizer(texts, vocab_size=plan.vocab_size, max_tokens=plan.max_tokens)


def _rows(
    shelf: _Shelf, tokenizer: PreTrainedTokenizerFast, plan: WriterPlan, seed: int
) -> Iterator[Rows]:
    """A step's rows at a time: documents one after the other, without gaps."""
    size = plan.num_rows * (plan.row_tokens + 1)
    ids: list[int] = []
    positions: list[int] = []
    for document in _documents(shelf, seed):
        encoded = encode(tokenizer, document)
        ids += encoded
        positions += range(len(encoded))
        if len(ids) >= size:
            yield Rows(
                torch.tensor(ids[:size]).view(plan.num_rows, -1),
                torch.tensor(positions[:size]).view(plan.num_rows, -1),
            )
            del ids[:size], positions[:size]


def _perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> float:
    total, num_tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([encode(tokenizer, Document(text=text))])
        rows = Rows(ids, torch.arange(ids.shape[1])[None])
        with torch.no_grad():
            total += loss_of(model, rows).item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    return math.exp(total / num_tokens)


def _sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """A story that was asked for, sampled as the model's own settings say."""
    chat = (Turn("user", "Tell me a story."), Turn("assistant", ""))
    ids = torch.tensor([encode(tokenizer, Document(turns=chat))[:-1]])
    with torch.no_grad():
        told = model.generate(  # type: ignore[misc]
            inputs=ids, attention_mask=torch.ones_like(ids), max_new_tokens=_SAMPLE_TOKENS
        )
    return str(tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True))


@contextmanager
def _computing(wanted: int | None) -> Iterator[None]:
    """Sets how torch computes: on how many threads, and in bf16 where that is in the hardware."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(wanted or min(available_threads(), _MAX_THREADS))
    # Twice as fast where it is, and nothing lost; other processors go on in fp32.
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
