"""The peer on a GPU, in a process of its own: transformers on torch, as its documentation has it.

`classify` takes the texts sorted by length in batches of 64; `generate` prompts of equal length
with a static cache, greedily. Both in the precision of the engine that is measured beside it.
"""

import sys
import time
from pathlib import Path

import torch
import transformers

from .workload import prompt_of

__all__: list[str] = []

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEVICE, _BATCH = "cuda", 64
_COPY_BYTES, _COPIES = 1 << 31, 20


def main() -> None:
    """Says that it is ready, and answers lines with figures."""
    task, checkpoint, *rest = sys.argv[1:]
    torch.backends.cuda.matmul.allow_tf32 = False
    if task == "classify":
        _classify(Path(checkpoint), Path(rest[0]), rest[1], float(rest[2]))
    else:
        _generate(Path(checkpoint), rest[0], int(rest[1]), int(rest[2]))


def _classify(checkpoint: Path, texts_file: Path, precision: str, seconds: float) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        checkpoint, dtype=_DTYPES.get(precision, torch.float16)
    )
    model = model.eval().to(_DEVICE)
    texts = sorted(texts_file.read_text().splitlines(), key=len)
    batches = [
        tokenizer(texts[i : i + _BATCH], return_tensors="pt", padding=True, truncation=True).to(
            _DEVICE
        )
        for i in range(0, len(texts), _BATCH)
    ]

    def once() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch).logits.float().cpu()

    once()
    print("ready", flush=True)
    for _ in sys.stdin:
        num_texts, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            once()
            num_texts += len(texts)
        print(num_texts / spent, flush=True)


def _generate(checkpoint: Path, precision: str, num_prompt: int, num_new: int) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=_DTYPES.get(precision, torch.bfloat16)
    )
    model = model.eval().to(_DEVICE)
    print("ready", flush=True)
    for line in sys.stdin:
        what, *size = line.split()
        if what == "weights":
            print(_num_read(model), flush=True)
        elif what == "bandwidth":
            print(_bandwidth(), flush=True)
        else:
            print(_decode(model, int(size[0]), num_prompt, num_new), flush=True)


def _num_read(model: torch.nn.Module) -> int:
    """Weights that each token reads: an embedding that is no head is looked up alone."""
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    total = sum(p.numel() for p in model.parameters())
    return int(total if head is embedding else total - embedding.numel())


def _bandwidth() -> float:
    """Bytes a second that are read and written by a copy within the device."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=_DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_COPIES):
        target.copy_(source)
    torch.cuda.synchronize()
    return 2 * _COPIES * _COPY_BYTES / (time.perf_counter() - began)


def _decode(model: torch.nn.Module, size: int, num_prompt: int, num_new: int) -> float:
    """Tokens a second of so many sequences, without their prompts."""
    prompts = torch.tensor([prompt_of(num_prompt, i) for i in range(size)], device=_DEVICE)

    def seconds(count: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(4)
    short = seconds(1)
    return size * (num_new - 1) / (seconds(num_new) - short)


if __name__ == "__main__":
    main()
