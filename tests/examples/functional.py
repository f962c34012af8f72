"""Operations of ``torch.nn.functional``, as layers of a network.

A layer gets hidden values, shape ``(batch, channels, *places)``, and returns what has the channels
along the same dimension, or forgets about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from examples.bayesian import normal
from torch import Tensor

CHANNELS, PLACES = 4, 6


@dataclass(frozen=True)
class Layer:
    """A layer of a network.

    Attributes:
        num_places: how many dimensions of places the hidden values have.
        run: from hidden values to others.
        weights: the dimension of the layer's own weights that has the channels.
    """

    num_places: int
    run: Callable[[Tensor], Any]
    weights: Mapping[str, int] = field(default_factory=dict)


def entrywise(name: str, *arguments: Any, **options: Any) -> Layer:
    return Layer(1, lambda h: getattr(F, name)(h, *arguments, **options))


def pooled(name: str, num_places: int, *arguments: Any, **options: Any) -> Layer:
    return Layer(num_places, lambda h: getattr(F, name)(h, *arguments, **options))


def compared(name: str, target: Callable[[Tensor], Tensor], **options: Any) -> Layer:
    return Layer(1, lambda h: getattr(F, name)(h, target(h), **options))


def convolved(name: str, num_places: int, dim: int) -> Layer:
    kernel = (2,) * num_places
    return Layer(
        num_places,
        lambda h: getattr(F, name)(h, normal("kernel", CHANNELS, CHANNELS, *kernel)),
        {"kernel": dim - num_places},
    )


def channels_last(run: Callable[[Tensor], Tensor], **weights: int) -> Layer:
    return Layer(1, lambda h: run(h.mT).mT, weights)


def zeros(h: Tensor) -> Tensor:
    return torch.zeros_like(h)


def halves(h: Tensor) -> Tensor:
    return torch.full_like(h, 0.5)


def signs(h: Tensor) -> Tensor:
    return torch.ones_like(h)


def labels(h: Tensor) -> Tensor:
    return torch.zeros(len(h), *h.shape[2:], dtype=torch.long)


def attention(h: Tensor) -> Tensor:
    sequence = h.permute(2, 0, 1)
    return F.multi_head_attention_forward(
        *(sequence, sequence, sequence, CHANNELS, 2),
        *(normal("in_proj", 3 * CHANNELS, CHANNELS), normal("in_bias", 3 * CHANNELS)),
        *(None, None, False, 0.0, normal("out_proj", CHANNELS, CHANNELS), None),
    )[0].permute(1, 2, 0)


def unpooled(pool: str, unpool: str) -> Callable[[Tensor], Tensor]:
    return lambda h: getattr(F, unpool)(*getattr(F, pool)(h, 2, return_indices=True), 2)


def grid_sample(h: Tensor) -> Tensor:
    grid = F.affine_grid(torch.eye(2, 3).expand(len(h), 2, 3), list(h.shape), align_corners=False)
    return F.grid_sample(h, grid, align_corners=False)


def bag(h: Tensor) -> Tensor:
    table = h.mean((0, 2))[None, :] * normal("table", 5, CHANNELS)
    return F.embedding_bag(torch.tensor([[0, 1], [2, 4]]), table, mode="mean")


def embedding(h: Tensor) -> Tensor:
    table = h.mean((0, 2))[None, :] * normal("table", 5, CHANNELS)
    return F.embedding(torch.tensor([0, 3, 4]), table)


def fold(h: Tensor) -> Tensor:
    columns = F.unfold(h, 2)
    return F.fold(columns, (PLACES, PLACES), 2)


LAYERS: dict[str, Layer] = {
    **{
        name: entrywise(name)
        for name in (
            *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
            *("leaky_relu", "logsigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu"),
            *("softplus", "softshrink", "softsign", "tanh", "tanhshrink", "rrelu"),
        )
    },
    "threshold": entrywise("threshold", 0.1, 0.0),
    "prelu": Layer(1, lambda h: F.prelu(h, normal("slopes", CHANNELS)), {"slopes": -1}),
    "glu": Layer(1, lambda h: F.glu(torch.cat([h, h.sin()], 1), 1)),
    "softmax": entrywise("softmax", 1),
    "softmin": entrywise("softmin", 1),
    "log_softmax": entrywise("log_softmax", 1),
    "gumbel_softmax": entrywise("gumbel_softmax", dim=1),
    "normalize": entrywise("normalize", dim=1),
    "dropout": entrywise("dropout", 0.5, False),
    "alpha_dropout": entrywise("alpha_dropout", 0.5, False),
    "feature_alpha_dropout": entrywise("feature_alpha_dropout", 0.5, False),
    **{f"dropout{n}d": pooled(f"dropout{n}d", n, 0.5, False) for n in (1, 2, 3)},
    "dropout, training": entrywise("dropout", 0.5, True),
    "pad": entrywise("pad", (1, 1)),
    "pad, reflect": entrywise("pad", (1, 1), mode="reflect"),
    "pad, replicate": entrywise("pad", (1, 1), mode="replicate"),
    "pad, circular": entrywise("pad", (1, 1), mode="circular"),
    "linear": channels_last(
        lambda h: F.linear(h, normal("kernel", CHANNELS, CHANNELS), normal("bias", CHANNELS)),
        kernel=-1,
    ),
    "bilinear": channels_last(
        lambda h: F.bilinear(
            h, h.exp().mean(-1, keepdim=True), normal("kernel", CHANNELS, CHANNELS, 1)
        ),
        kernel=-2,
    ),
    **{f"conv{n}d": convolved(f"conv{n}d", n, -1) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolved(f"conv_transpose{n}d", n, -2) for n in (1, 2, 3)},
    "conv_tbc": Layer(
        1,
        lambda h: F.conv_tbc(
            h.permute(2, 0, 1).contiguous(),
            normal("kernel", 2, CHANNELS, CHANNELS),
            normal("bias", CHANNELS),
        ).permute(1, 2, 0),
        {"kernel": -2},
    ),
    **{f"avg_pool{n}d": pooled(f"avg_pool{n}d", n, 2) for n in (1, 2, 3)},
    **{f"max_pool{n}d": pooled(f"max_pool{n}d", n, 2) for n in (1, 2, 3)},
    **{f"lp_pool{n}d": pooled(f"lp_pool{n}d", n, 2.0, 2) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": pooled(f"adaptive_avg_pool{n}d", n, 2) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": pooled(f"adaptive_max_pool{n}d", n, 2) for n in (1, 2, 3)},
    **{
        f"fractional_max_pool{n}d": pooled(f"fractional_max_pool{n}d", n, 2, output_size=4)
        for n in (2, 3)
    },
    **{
        f"max_unpool{n}d": Layer(n, unpooled(f"max_pool{n}d", f"max_unpool{n}d")) for n in (1, 2, 3)
    },
    "interpolate": pooled("interpolate", 2, scale_factor=2),
    "interpolate, bilinear": pooled("interpolate", 2, scale_factor=2, mode="bilinear"),
    "interpolate, bicubic": pooled("interpolate", 2, scale_factor=2, mode="bicubic"),
    "interpolate, area": pooled("interpolate", 2, scale_factor=0.5, mode="area"),
    "grid_sample": Layer(2, grid_sample),
    "pixel_shuffle": Layer(2, lambda h: F.pixel_shuffle(h, 2)),
    "pixel_unshuffle": Layer(2, lambda h: F.pixel_unshuffle(h, 2)),
    "channel_shuffle": pooled("channel_shuffle", 2, 2),
    "unfold": Layer(2, lambda h: F.unfold(h, 2)),
    "fold": Layer(2, fold),
    "batch_norm": Layer(1, lambda h: F.batch_norm(h, None, None, training=True)),
    "batch_norm, eval": Layer(
        1, lambda h: F.batch_norm(h, torch.zeros(CHANNELS), torch.ones(CHANNELS))
    ),
    "group_norm": Layer(1, lambda h: F.group_norm(h, 1, normal("gain", CHANNELS)), {"gain": -1}),
    "instance_norm": entrywise("instance_norm"),
    "layer_norm": channels_last(
        lambda h: F.layer_norm(h, [CHANNELS], normal("gain", CHANNELS)), gain=-1
    ),
    "rms_norm": channels_last(
        lambda h: F.rms_norm(h, [CHANNELS], normal("gain", CHANNELS)), gain=-1
    ),
    "local_response_norm": pooled("local_response_norm", 2, 3),
    "embedding": Layer(1, embedding, {"table": -1}),
    "embedding_bag": Layer(1, bag, {"table": -1}),
    "one_hot": Layer(1, lambda h: h * F.one_hot((h > 0).long(), 2).sum(-1)),
    "scaled_dot_product_attention": channels_last(
        lambda h: F.scaled_dot_product_attention(h, h.sin(), h.cos())
    ),
    "multi_head_attention_forward": Layer(1, attention, {"in_proj": -1}),
    "cosine_similarity": Layer(1, lambda h: F.cosine_similarity(h, h.exp(), dim=1)),
    "pairwise_distance": Layer(1, lambda h: F.pairwise_distance(h.mT, h.exp().mT)),
    "pdist": Layer(1, lambda h: F.pdist(h.mean(2))),
    "mse_loss": compared("mse_loss", zeros),
    "l1_loss": compared("l1_loss", zeros),
    "smooth_l1_loss": compared("smooth_l1_loss", zeros, reduction="none"),
    "huber_loss": compared("huber_loss", zeros),
    "kl_div": compared("kl_div", halves),
    "binary_cross_entropy": Layer(1, lambda h: F.binary_cross_entropy(h.sigmoid(), halves(h))),
    "binary_cross_entropy_with_logits": compared("binary_cross_entropy_with_logits", halves),
    "soft_margin_loss": compared("soft_margin_loss", signs),
    "hinge_embedding_loss": compared("hinge_embedding_loss", signs),
    "poisson_nll_loss": compared("poisson_nll_loss", signs),
    "gaussian_nll_loss": Layer(1, lambda h: F.gaussian_nll_loss(h, zeros(h), h.exp())),
    "margin_ranking_loss": Layer(1, lambda h: F.margin_ranking_loss(h, h.sin(), signs(h))),
    "cosine_embedding_loss": Layer(
        1,
        lambda h: F.cosine_embedding_loss(h.mean(2), h.exp().mean(2), torch.ones(len(h))),
    ),
    "triplet_margin_loss": Layer(
        1, lambda h: F.triplet_margin_loss(h.mean(2), h.sin().mean(2), h.exp().mean(2))
    ),
    "triplet_margin_with_distance_loss": Layer(
        1,
        lambda h: F.triplet_margin_with_distance_loss(h.mean(2), h.sin().mean(2), h.exp().mean(2)),
    ),
    "cross_entropy": compared("cross_entropy", labels),
    "cross_entropy, over places": Layer(1, lambda h: F.cross_entropy(h.mT, labels(h.mT))),
    "nll_loss": compared("nll_loss", labels),
    "nll_loss, over places": Layer(1, lambda h: F.nll_loss(h.mT, labels(h.mT))),
    "multi_margin_loss": Layer(
        1, lambda h: F.multi_margin_loss(h.mean(2), torch.zeros(len(h), dtype=torch.long))
    ),
    "multilabel_margin_loss": Layer(
        1,
        lambda h: F.multilabel_margin_loss(
            h.mean(2), torch.tensor([0, -1, -1, -1]).expand(len(h), CHANNELS)
        ),
    ),
    "multilabel_soft_margin_loss": Layer(
        1, lambda h: F.multilabel_soft_margin_loss(h.mean(2), halves(h.mean(2)))
    ),
    "ctc_loss": Layer(
        1,
        lambda h: F.ctc_loss(
            h.permute(2, 0, 1).log_softmax(-1),
            torch.ones(len(h), 2, dtype=torch.long),
            torch.full((len(h),), PLACES),
            torch.full((len(h),), 2),
        ),
    ),
}

# In place, deprecated, the same under another name, or for hardware and types of their own.
LEFT_OUT = {
    *("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"),
    *("upsample", "upsample_bilinear", "upsample_nearest", "native_channel_shuffle"),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"adaptive_max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"fractional_max_pool{n}d_with_indices" for n in (2, 3)),
    *("affine_grid", "grouped_mm", "scaled_mm", "scaled_grouped_mm", "linear_cross_entropy"),
}


def hidden(x: Tensor, num_places: int) -> Tensor:
    """Hidden values, shape ``(batch, CHANNELS, *places)``, from data, shape ``(batch, PLACES)``."""
    h = torch.tanh(x[:, None] * normal("w1", CHANNELS)[:, None])
    for _ in range(num_places - 1):
        h = h[..., None] * x.reshape(len(x), *(1,) * (h.dim() - 1), PLACES)
    return h


def network(layer: Layer, x: Tensor) -> Tensor:
    """What a network with this layer returns for each input, or for all of them together."""
    out = layer.run(hidden(x, layer.num_places))
    if out.dim() > 1 and out.shape[1] == CHANNELS:
        out = torch.einsum("bc...,c->b...", out, normal("w2", CHANNELS))
    return out


def channels_of(layer: Layer, sites: Iterable[str]) -> dict[str, int]:
    """The spec of the group that permutes the channels that the layer gets.

    :param sites: the sites of the network.
    """
    mixes_channels = any(name in sites for name in ("kernel", "in_proj"))
    after = {} if mixes_channels or "w2" not in sites else {"w2": -1}
    return {"w1": -1, **layer.weights, **after}
