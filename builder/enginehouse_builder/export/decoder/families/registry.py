"""Which adapter an attention module takes. Nothing else in the exporter knows families."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese import (
    GPTNeoXJapaneseAttention,
)
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.mpt.modeling_mpt import MptAttention
from transformers.models.openai.modeling_openai import Attention as OpenAIGPTAttention
from transformers.models.roformer.modeling_roformer import (
    RoFormerSelfAttention,
    RoFormerSinusoidalPositionalEmbedding,
)
from transformers.models.xglm.modeling_xglm import XGLMAttention

from . import (
    bloom,
    codegen,
    falcon,
    gpt_neo,
    gpt_neox_japanese,
    gptj,
    mpt,
    openai_gpt,
    roformer,
    xglm,
)
from .base import Adapter, LayerAttention

__all__ = ["adapted", "is_adaptable"]

# By the class itself: what inherits from it may compute something else.
_ADAPTERS: Mapping[type[nn.Module], Adapter] = {
    BloomAttention: bloom.adapt,
    CodeGenAttention: codegen.adapt,
    FalconAttention: falcon.adapt,
    GPTJAttention: gptj.adapt,
    GPTNeoSelfAttention: gpt_neo.adapt,
    GPTNeoXJapaneseAttention: gpt_neox_japanese.adapt,
    MptAttention: mpt.adapt,
    OpenAIGPTAttention: openai_gpt.adapt,
    RoFormerSelfAttention: roformer.adapt,
    RoFormerSinusoidalPositionalEmbedding: roformer.adapt_table,
    XGLMAttention: xglm.adapt,
}


def is_adaptable(model: PreTrainedModel) -> bool:
    """Whether any of the model's modules has an adapter."""
    return bool(_modules(model))


@contextmanager
def adapted(model: PreTrainedModel, attention: LayerAttention) -> Iterator[None]:
    """Within it the modules that have an adapter attend by `attention`."""
    replaced = []
    try:
        for module, adapt, number in _modules(model):
            name, function = adapt(module, attention, number)
            setattr(module, name, function)
            replaced.append((module, name))
        yield
    finally:
        for module, name in replaced:
            delattr(module, name)  # the class's own is seen again


def _modules(model: PreTrainedModel) -> list[tuple[nn.Module, Adapter, int]]:
    """Modules that have an adapter, each with its number among those of its class."""
    found = []
    for kind, adapt in _ADAPTERS.items():
        modules = (module for module in model.modules() if type(module) is kind)
        found += [(module, adapt, number) for number, module in enumerate(modules)]
    return found
