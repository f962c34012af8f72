"""Steps of random programs that networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from examples.random_program import STEPS, Program, steps
from torch import Tensor

POINTWISE = [
    *(torch.tanh, torch.sigmoid, torch.sin, F.softplus, F.relu6, lambda h: h * h * 0.3),
    *(torch.relu, torch.relu, torch.abs, F.leaky_relu, lambda h: torch.where(h > 0, h, 0.2 * h)),
    *(lambda h, e=e: h / (h.norm(dim=-1, keepdim=True) + e) for e in (0.0, 0.01)),
]
ORDERED: list[Callable[[Tensor, int], Tensor]] = [
    lambda h, dim: h.cumsum(dim),
    lambda h, dim: h.flip(dim),
    lambda h, dim: h.roll(1, dim),
    lambda h, dim: _shuffle(h, dim),
    lambda h, dim: h.sort(dim)[0],
    lambda h, dim: h - h.max(dim, keepdim=True)[0],
    lambda h, dim: torch.cat([h.topk(1, dim)[0], h], dim),
    lambda h, dim: h + h.argmax(dim, keepdim=True),
]


def _shuffle(h: Tensor, dim: int) -> Tensor:
    """In two groups, where there are."""
    if h.shape[dim] % 2:
        return h
    return h.unflatten(dim, (2, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _pointwise(p: Program, h: Tensor) -> Tensor:
    return p.choose.choice(POINTWISE)(h)


def _bias(p: Program, h: Tensor) -> Tensor:
    dim = p.choose.randrange(1, h.dim())
    w = p.weight(h.shape[dim]).view(-1, *[1] * (h.dim() - 1 - dim))
    return p.choose.choice([h + w, h + w, h * w, h / w])


def _softmax(p: Program, h: Tensor) -> Tensor:
    return h.softmax(p.choose.randrange(1, h.dim()))


def _normalize(p: Program, h: Tensor) -> Tensor:
    dim = p.choose.randrange(h.dim())
    return (h - h.mean(dim, keepdim=True)) / (1 + h.var(dim, correction=0, keepdim=True))


def _residual(p: Program, h: Tensor) -> Tensor:
    same = [k for k in p.kept if k.shape == h.shape]
    return h + p.choose.choice(same) if same else h


def _in_place(p: Program, h: Tensor) -> Tensor:
    h = h.clone()
    h.mul_(0.5)
    h += torch.ones(h.shape[-1])
    return h.tanh_()


def _write_slice(p: Program, h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, 0] = h[:, -1] * 0.5
    return h


def _preallocated(p: Program, h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for j in range(h.shape[1]):
        out[:, j] = h[:, j] * (j + 1 if p.choose.random() < 0.5 else 2.0)
    return out


def _write_through_view(p: Program, h: Tensor) -> Tensor:
    h = h + 0.0
    view = h.transpose(0, 1) if p.choose.random() < 0.5 else h.view(-1)
    view.mul_(2.0)
    return h


def _branch(p: Program, h: Tensor) -> Tensor:
    if p.choose.random() < 0.5:
        return h * 2 if bool((h * h).sum() > 1e9) else h.tanh()
    return h * float(h.detach().abs().max() > 1e9) + h


def _position(p: Program, h: Tensor) -> Tensor:
    return h + torch.arange(float(h.shape[-1]))


def _coloured(p: Program, h: Tensor) -> Tensor:
    return h * (1.0 + torch.arange(h.shape[1]).div(2, rounding_mode="floor")).view(
        -1, *[1] * (h.dim() - 2)
    )


def _order(p: Program, h: Tensor) -> Tensor:
    dim = p.choose.randrange(1, h.dim())
    return p.choose.choice(ORDERED)(h, dim)


def _cat(p: Program, h: Tensor) -> Tensor:
    dim = p.choose.randrange(1, h.dim())
    return torch.cat([h, p.choose.choice(POINTWISE)(h)], dim) if h.shape[dim] < 9 else h


def _chunk(p: Program, h: Tensor) -> Tensor:
    dim = p.choose.randrange(1, h.dim())
    if h.shape[dim] % 2:
        return h
    first, second = h.chunk(2, dim)
    return first * second.sigmoid()


def _narrow(p: Program, h: Tensor) -> Tensor:
    dim = p.choose.randrange(1, h.dim())
    return h.narrow(dim, 0, h.shape[dim] - 1) if h.shape[dim] > 2 else h


def _pad(p: Program, h: Tensor) -> Tensor:
    return F.pad(h, (1, p.choose.randrange(2))) if h.shape[-1] < 9 else h


def _index(p: Program, h: Tensor) -> Tensor:
    n = h.shape[1]
    index = p.choose.choice([list(range(n)), list(range(n))[::-1], [0, *range(n - 1)]])
    return h[:, torch.tensor(index)]


def _strided(p: Program, h: Tensor) -> Tensor:
    start, step = p.choose.randrange(3), p.choose.randrange(2, 4)
    return h[:, start::step] if h.shape[1] > start + 1 else h


def _interleaved(p: Program, h: Tensor) -> Tensor:
    if h.shape[-1] % 2:
        return h
    first, second = h[..., ::2], h[..., 1::2]
    if p.choose.random() < 0.5:
        return first * second.sigmoid()
    return torch.stack([first - second, first + 2 * second], -1).flatten(-2)


def _repeat(p: Program, h: Tensor) -> Tensor:
    return h.repeat(1, 2, *[1] * (h.dim() - 2)) if h.shape[1] < 5 else h


def _mask(p: Program, h: Tensor) -> Tensor:
    return h.masked_fill(torch.ones(h.shape[-2:]).tril() == 0, 0.0)


for _rank in STEPS:
    STEPS[_rank] += [_pointwise] * 4 + [
        *(_bias, _bias, _softmax, _normalize, _residual, _residual, _in_place, _write_slice),
        *(_preallocated, _write_through_view, _branch, _position, _coloured, _order, _order),
        *(_cat, _cat, _chunk, _narrow, _pad, _index, _strided, _interleaved, _repeat, _mask),
    ]


@steps(2)
def _linear(p: Program, h: Tensor) -> Tensor:
    return F.linear(h, p.weight(p.choose.choice([2, 4, 6]), h.shape[1]))


@steps(2)
def _linear_einsum(p: Program, h: Tensor) -> Tensor:
    return torch.einsum("ni,io->no", h, p.weight(h.shape[1], p.choose.choice([3, 4])))


@steps(2)
def _tied(p: Program, h: Tensor) -> Tensor:
    w = p.weight(h.shape[1], 4)
    return torch.tanh(h @ w) @ w.T


@steps(2)
def _gram(p: Program, h: Tensor) -> Tensor:
    w = p.weight(h.shape[1], 3)
    return h @ (w @ w.T + torch.eye(h.shape[1]))


@steps(2)
def _recurrent(p: Program, h: Tensor) -> Tensor:
    w = p.weight(h.shape[1], h.shape[1])
    for _ in range(2):
        h = torch.tanh(h @ w.T)
    return h


@steps(2)
def _gru(p: Program, h: Tensor) -> Tensor:
    n = 3
    w, u = p.weight(3 * n, h.shape[1]), p.weight(3 * n, n)
    state = h.new_zeros(len(h), n)
    for _ in range(2):
        state = torch.gru_cell(h, state, w, u)
    return state


@steps(2)
def _to_sequence(p: Program, h: Tensor) -> Tensor:
    return h.view(len(h), 2, -1) if h.shape[1] % 2 == 0 else h


@steps(2)
def _to_sequence_interleaved(p: Program, h: Tensor) -> Tensor:
    return h.view(len(h), -1, 2).transpose(1, 2) if h.shape[1] % 2 == 0 else h


@steps(2)
def _layer_norm(p: Program, h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[1:], p.weight(h.shape[1]))


@steps(2)
def _experts(p: Program, h: Tensor) -> Tensor:
    w = p.weight(3, h.shape[1], 4)
    gate = (h @ p.weight(h.shape[1], 3)).softmax(-1)
    return torch.einsum("ne,nd,edo->no", gate, h, w)


@steps(3)
def _attention(p: Program, h: Tensor) -> Tensor:
    n, t, e = h.shape
    if e % 2:
        return h
    qkv = (h @ p.weight(e, 3 * e)).view(n, t, 3, 2, e // 2).permute(2, 0, 3, 1, 4)
    causal = p.choose.random() < 0.3
    out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=causal)
    return out.transpose(1, 2).reshape(n, t, e) @ p.weight(e, e)


@steps(3)
def _per_head(p: Program, h: Tensor) -> Tensor:
    return torch.einsum("nhd,hde->nhe", h, p.weight(h.shape[1], h.shape[2], 3))


@steps(3)
def _mix_last(p: Program, h: Tensor) -> Tensor:
    return h @ p.weight(h.shape[2], p.choose.choice([2, 4]))


@steps(3)
def _pool_sequence(p: Program, h: Tensor) -> Tensor:
    return p.choose.choice([h.mean(1), h[:, -1], h.amax(2), h.logsumexp(1)])


@steps(3)
def _conv1d(p: Program, h: Tensor) -> Tensor:
    return F.conv1d(h, p.weight(p.choose.choice([2, 4]), h.shape[1], 1))


@steps(3)
@steps(4)
def _flatten(p: Program, h: Tensor) -> Tensor:
    return h.flatten(1)


@steps(3)
@steps(4)
def _swap(p: Program, h: Tensor) -> Tensor:
    return h.transpose(1, 2).contiguous()


@steps(3)
def _loop(p: Program, h: Tensor) -> Tensor:
    state, w = h[:, 0], p.weight(h.shape[2], h.shape[2])
    states = []
    for t in range(h.shape[1]):
        state = torch.tanh(h[:, t] + state @ w)
        states.append(state)
    return torch.stack(states, 1)


@steps(4)
def _conv2d(p: Program, h: Tensor) -> Tensor:
    channels = h.shape[1]
    groups = p.choose.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    out = groups * p.choose.choice([1, 2])
    return F.conv2d(h, p.weight(out, channels // groups, 3, 3), padding=1, groups=groups) / 3


@steps(4)
def _conv_transpose(p: Program, h: Tensor) -> Tensor:
    channels = h.shape[1]
    groups = p.choose.choice([g for g in (1, 2) if channels % g == 0])
    return F.conv_transpose2d(h, p.weight(channels, 2, 1, 1), groups=groups)


@steps(4)
def _pool(p: Program, h: Tensor) -> Tensor:
    if min(h.shape[2:]) < 2:
        return h
    return p.choose.choice([F.max_pool2d, F.avg_pool2d])(h, 2)


@steps(4)
def _global_pool(p: Program, h: Tensor) -> Tensor:
    return p.choose.choice([h.mean((2, 3)), F.adaptive_avg_pool2d(h, 1).flatten(1)])


@steps(4)
def _group_norm(p: Program, h: Tensor) -> Tensor:
    groups = p.choose.choice([g for g in (1, 2, h.shape[1]) if h.shape[1] % g == 0])
    return F.group_norm(h, groups, p.weight(h.shape[1]), p.weight(h.shape[1]))


@steps(4)
def _batch_norm(p: Program, h: Tensor) -> Tensor:
    return F.batch_norm(h, None, None, p.weight(h.shape[1]), training=True)


@steps(4)
def _upsample(p: Program, h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2) if max(h.shape[2:]) < 5 else h
