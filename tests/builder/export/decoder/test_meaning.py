import pytest
import torch
from torch import Tensor, nn

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.decoder.meaning import attend, check_meaning
from enginehouse_builder.manifest import AttentionLayer

PLAIN = AttentionLayer(4, 2, 8, 6, window=3)
SINKS = torch.tensor([0.3, -1.0, 2.0, 0.0])


class Attention(nn.Module):
    """What `eager_attention_forward` computes for it, whatever is handed over."""

    def __init__(self, *, softcap: float = 0.0, sinks: Tensor | None = None) -> None:
        super().__init__()
        self.softcap, self.sinks = softcap, sinks


def eager_attention_forward(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float = 1.0,
    **_: object,
) -> tuple[Tensor, None]:
    seen = (attention_mask[0, 0] == 0).sum(-1)  # of each token, the last of which shows a window
    output = attend(
        query * scaling,
        key,
        value,
        window=int(seen.max()),
        softcap=module.softcap,
        sinks=module.sinks,
    )
    return output.transpose(1, 2), None


def test_what_is_handed_over_may_be_what_is_computed() -> None:
    capped = AttentionLayer(4, 2, 8, 6, window=0, softcap=0.5)
    check_meaning(Attention(), PLAIN, 0.25, {})
    check_meaning(Attention(softcap=0.5), capped, 0.25, {"softcap": 0.5, "dropout": 0.0})
    check_meaning(Attention(sinks=SINKS), PLAIN, 0.25, {"s_aux": SINKS})


@pytest.mark.parametrize(
    ("module", "extras"),
    [
        (Attention(softcap=0.5), {}),
        (Attention(sinks=SINKS), {}),
        (Attention(), {"s_aux": SINKS}),
        (Attention(sinks=SINKS), {"s_aux": -SINKS}),
    ],
)
def test_what_is_computed_otherwise_than_handed_over_is_refused(
    module: Attention, extras: dict[str, object]
) -> None:
    with pytest.raises(UnsupportedModelError, match="of Attention is not what it was taken for"):
        check_meaning(module, PLAIN, 0.25, extras)


def test_a_scale_of_the_models_own_is_refused_where_it_is_not_handed_over() -> None:
    with pytest.raises(UnsupportedModelError, match="not what it was taken for"):
        check_meaning(Attention(), PLAIN, None, {})  # which means 8 ** -0.5; the module takes 1


def test_code_that_fails_is_refused_with_its_reason() -> None:
    broken = AttentionLayer(4, 2, 8, 6, window=0)
    with pytest.raises(UnsupportedModelError, match=r"cannot be tried: .*softcap"):
        check_meaning(without_softcap(), broken, 0.25, {})


def without_softcap() -> nn.Module:
    module = Attention()
    del module.softcap
    return module
