"""The models that are measured, built by the ordinary builder and kept for the next run."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["DECODER_SHAPES", "build_model", "checkpoint_of", "tokenizer_of"]

FOLDER = Path(".cache/bench")
REPOSITORY = FOLDER / "repository"

_SHAPES: dict[str, dict[str, Any]] = {
    "base": {},  # the defaults of BertConfig are those of BERT-base
    "large": {  # that of BERT-large
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}

DECODER_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {  # that of Qwen3-0.6B
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "llama8b": {  # that of Llama-3.1-8B
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
    "small": {  # for trying out
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}

# Random weights: what their certificate says beyond the least is of no interest.
_DECODER_FLAGS = ("--max-tokens", "1024", "--certify-minutes", "0")


def build_model(shape: str, precision: str, target: str = "openvino", *more: str) -> Path:
    """The folder of a version of the shape with random weights, or of the demo, in that precision.

    The words' vocabulary is real, so that texts have the lengths that they say.

    Args:
        shape: Of the model.
        precision: Of its engine.
        target: What the engine is for.
        more: Further flags of the build.
    """
    on = "" if target == "openvino" else f"-{target.replace(':', '-')}"
    name = f"{shape}-{precision}{on}"
    shutil.rmtree(REPOSITORY / name, ignore_errors=True)  # an identical build takes seconds
    print(f"building {name}", flush=True)
    flags = _DECODER_FLAGS if shape in DECODER_SHAPES else ()
    model = ("--model", checkpoint_of(shape), "--name", name)
    _run("build", *model, "--target", f"{target}={precision}", *flags, *more)
    return REPOSITORY / name / "1"


def tokenizer_of(version: Path) -> Path:
    """Its tokenizer.json."""
    return version / "tokenizer/tokenizer.json"


def checkpoint_of(shape: str) -> Path:
    """The folder of the original, made if it is not there."""
    folder = FOLDER / "checkpoints" / shape
    if shape == "topics" and not (folder / "tokenizer.json").exists():
        from enginehouse_builder.demo.classifier import train_topics

        train_topics(folder, report=lambda _: None)
    if not (folder / "tokenizer.json").exists():  # the last file that is written
        import torch
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
            BertConfig,
            BertForSequenceClassification,
        )

        from enginehouse_builder.demo.classifier import encoder_folder

        torch.manual_seed(0)
        if shape in DECODER_SHAPES:
            traits = {"model_type": "qwen3", **DECODER_SHAPES[shape]}
            decoder = AutoConfig.for_model(**traits)
            # A large one in the type that it is published in: half the file.
            dtype = torch.bfloat16 if shape == "llama8b" else torch.float32
            AutoModelForCausalLM.from_config(decoder, dtype=dtype).save_pretrained(folder)
        else:
            config = BertConfig(**_SHAPES[shape])
            config.num_labels = 8
            BertForSequenceClassification(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder


def _run(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "enginehouse_client", *map(str, arguments)]
    flags = ["--repository", str(REPOSITORY), "--cache-dir", str(FOLDER / "stages")]
    subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
