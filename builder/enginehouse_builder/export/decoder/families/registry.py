"""Which adapter an attention module takes. Nothing else in the exporter knows families."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.mpt.modeling_mpt import MptAttention
from transformers.models.openai.modeling_openai import Attention as OpenAIGPTAttention
from transformers.models.xglm.modeling_xglm import XGLMAttention

from . import bloom, codegen, falcon, gpt_neo, gptj, mpt, openai_gpt, xglm
from .base import Adapter, LayerAttention

__all__ = ["adapted", "is_adaptable"]

# By the class itself: what inherits from it may compute something else.
_ADAPTERS: Mapping[type[nn.Module], Adapter] = {
    BloomAttention: bloom.adapt,
    CodeGenAttention: codegen.adapt,
    FalconAttention: falcon.adapt,
    GPTJAttention: gptj.adapt,
    GPTNeoSelfAttention: gpt_neo.adapt,
    MptAttention: mpt.adapt,
    OpenAIGPTAttention: openai_gpt.adapt,
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
        for layer, (module, adapt) in enumerate(_modules(model)):
            name, function = adapt(module, attention, layer)
            setattr(module, name, function)
            replaced.append((module, name))
        yield
    finally:
        for module, name in replaced:
            delattr(module, name)  # the class's own is seen again


def _modules(model: PreTrainedModel) -> list[tuple[nn.Module, Adapter]]:
    return [(m, _ADAPTERS[type(m)]) for m in model.modules() if type(m) in _ADAPTERS]
