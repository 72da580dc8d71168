"""The model as a module from token ids to logits, for rows of any length in one batch.

Two ways in which transformers picks the token that a classifier answers at cannot be traced, or
not for rows of different length. Here they are said again, equal for a text alone:

- encoder-decoders take the last end-of-text token through a boolean index, which wants equally
  many of them in every row; here its position is looked up;
- decoders without a padding token take the last position, padding or not; here the last one
  that is attended to.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .loading import configured_pad_id

__all__ = ["module_of"]


def module_of(model: PreTrainedModel) -> nn.Module:
    """The model as `(input_ids, attention_mask, token_type_ids) -> logits`, all `[batch, n]`."""
    if model.config.is_encoder_decoder and hasattr(model, "classification_head"):
        return _AtLastEnd(model)
    if configured_pad_id(model) is None and model.base_model is not model:
        return _AtLastAttended(model)
    return _Logits(model)


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {name: value for name, value in inputs.items() if value is not None}
        logits: Tensor = self.model(input_ids, **given)["logits"]
        return logits


class _AtLastEnd(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._head = cast(nn.Module, model.classification_head)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        shift = getattr(self.model, "_shift_right", None)  # the others shift by themselves
        decoder = {} if shift is None else {"decoder_input_ids": shift(input_ids)}
        outputs = self.model.base_model(
            input_ids, attention_mask=attention_mask, use_cache=False, **decoder
        )
        hidden = outputs[0]  # [batch, length, hidden]
        is_end = (input_ids == self.model.config.eos_token_id).to(torch.int64)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (is_end * positions).argmax(-1)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        logits: Tensor = self._head(hidden[rows, last])
        return logits


class _AtLastAttended(_Logits):
    """Marks padding by an id that no token has, for the head; the body sees the ids as given."""

    _MARK = -1

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        model.config.get_text_config().pad_token_id = self._MARK
        model.base_model.register_forward_pre_hook(_unmark, with_kwargs=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            input_ids = torch.where(attention_mask.bool(), input_ids, self._MARK)
        return super().forward(input_ids, attention_mask, token_type_ids)


def _unmark(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if "input_ids" in kwargs:
        return args, {**kwargs, "input_ids": kwargs["input_ids"].clamp(min=0)}
    return (args[0].clamp(min=0), *args[1:]), kwargs
