"""A small Llama and how it is trained: the writer's size, its steps, its loss.

Knows nothing of the texts: it is given rows of tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import fmean
from typing import NamedTuple, cast

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .muon import Muon

__all__ = ["DEMO_PLAN", "Rows", "WriterPlan", "fit", "loss_of", "untrained"]

_RATE_OF_MATRICES = 0.03
_RATE_OF_OTHERS = 0.01
_DECAY = 0.01
_SHARE_OF_RISE = 0.04  # of the steps
_LAST_RATE = 0.05  # of the greatest
_REPORT_EVERY = 50


@dataclass(frozen=True, slots=True)
class WriterPlan:
    """The model's size and how long it learns; the defaults are the demo's.

    Attributes:
        vocab_size: Tokens of the vocabulary, at most.
        hidden_size: Width of the model; a head has 64 of it.
        num_layers: Its depth.
        max_tokens: Longest sequence.
        row_tokens: Length of a row of training; few documents are longer.
        num_rows: Rows of a step.
        num_steps: Steps; on two cores of 2024 the default takes about two minutes.
        max_perplexity: On new stories of known plots; beyond it the writer is not good enough.
    """

    vocab_size: int = 3072
    hidden_size: int = 256
    num_layers: int = 4
    max_tokens: int = 512
    row_tokens: int = 512
    num_rows: int = 3
    num_steps: int = 520
    max_perplexity: float = 5.0


DEMO_PLAN = WriterPlan()


class Rows(NamedTuple):
    """Documents in rows, one after the other.

    Attributes:
        ids: Tokens, `[rows, tokens]`.
        positions: Of each in its own document: where they begin anew, so does what can be seen.
    """

    ids: torch.Tensor
    positions: torch.Tensor


def untrained(plan: WriterPlan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model with random weights, drawn from torch's generator, and its settings of sampling."""
    num_heads = plan.hidden_size // 64
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden_size,
        intermediate_size=plan.hidden_size * 5 // 2,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 2),
        max_position_embeddings=plan.max_tokens,
        tie_word_embeddings=True,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    return model


def fit(
    model: LlamaForCausalLM,
    batches: Iterator[Rows],
    plan: WriterPlan,
    report: Callable[[str], None],
) -> list[float]:
    """Trains with a short rise of the learning rates and a long cosine fall.

    Args:
        model: Trained in place.
        batches: A step's rows at a time.
        plan: How long.
        report: Takes a line of progress at a time.

    Returns:
        The loss of each step, nats per token.
    """
    optimizers = _optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, partial(_share_of_rate, num_steps=plan.num_steps))
        for one in optimizers
    ]
    model.train()
    losses: list[float] = []
    for step, rows in enumerate(islice(batches, plan.num_steps), start=1):
        loss = loss_of(model, rows)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if step % _REPORT_EVERY == 0:
            mean = fmean(losses[-_REPORT_EVERY:])
            report(f"step {step} of {plan.num_steps}: loss {mean:.2f}")
    return losses


def _optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside; AdamW for the embedding, which is the head too, and norms."""
    embedding = model.get_parameter("model.embed_tokens.weight")
    inner = [weight for weight in model.parameters() if weight.dim() == 2]
    inner = [weight for weight in inner if weight is not embedding]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    return (
        Muon(inner, lr=_RATE_OF_MATRICES, weight_decay=_DECAY),
        torch.optim.AdamW(
            [embedding, *norms], lr=_RATE_OF_OTHERS, betas=(0.9, 0.95), weight_decay=0.0
        ),
    )


def _share_of_rate(step: int, num_steps: int) -> float:
    """What a step's learning rate is of the greatest, from 0 to 1."""
    rise = min(1.0, (step + 1) / (_SHARE_OF_RISE * num_steps))
    fall = (1 + math.cos(math.pi * min(step, num_steps) / num_steps)) / 2
    return rise * (_LAST_RATE + (1 - _LAST_RATE) * fall)


def loss_of(model: LlamaForCausalLM, rows: Rows) -> torch.Tensor:
    """Mean cross entropy of each next token, given those of its own document before it."""
    logits = model(  # [rows, tokens - 1, vocab]
        input_ids=rows.ids[:, :-1], position_ids=rows.positions[:, :-1], use_cache=False
    ).logits
    return cross_entropy(logits.flatten(0, 1), rows.ids[:, 1:].flatten())
