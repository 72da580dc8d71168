"""The original model, run by transformers in fp32: what every engine is compared with."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .export.loading import inputs_of, load_model, load_tokenizer, quiet
from .resolve import Resolved
from .spec import BuildSpec

__all__ = ["Reference"]


class Reference:
    """Answers as the original does for one text at a time: nothing is padded.

    Attributes:
        tokenizer: The original's own.
    """

    def __init__(self, resolved: Resolved, spec: BuildSpec) -> None:
        """Loads the original: seconds, and its weights in fp32 of memory.

        Raises:
            UnsupportedModelError: As `load_model` and `load_tokenizer`.
            ResolveError: As `load_model` and `load_tokenizer`.
        """
        self.tokenizer = load_tokenizer(resolved, spec)
        self._model = load_model(resolved, spec)
        self._inputs = inputs_of(self._model, self.tokenizer)

    def logits(
        self, texts: Sequence[tuple[str, str | None]], max_tokens: int
    ) -> NDArray[np.float32]:
        """The original's answers.

        Args:
            texts: A text, or two that are judged together.
            max_tokens: Length that longer ones are cut to, the longer of two first.

        Returns:
            Logits `[len(texts), labels]`.
        """
        rows = [self._row(text, pair, max_tokens) for text, pair in texts]
        return np.array(rows, np.float32)

    def _row(self, text: str, pair: str | None, max_tokens: int) -> NDArray[np.float32]:
        inputs = self.tokenizer(
            text, pair, truncation="longest_first", max_length=max_tokens, return_tensors="pt"
        )
        with quiet(), torch.inference_mode():
            logits = self._model(**{name: inputs[name] for name in self._inputs})["logits"]
        row: NDArray[np.float32] = logits[0].to(torch.float32).numpy()
        return row
