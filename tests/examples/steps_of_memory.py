"""Steps of random programs that write by number, through views, sparsely or in complex numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from examples.random_program import STEPS, Program, steps
from torch import Tensor


def _indices(p: Program, size: int, length: int) -> Tensor:
    """``length`` numbers below ``size``: in order, in reverse, or with repetitions."""
    kind = p.choose.choice(["order", "reverse", "repeated", "random"])
    if kind == "order" and length == size:
        return torch.arange(size)
    if kind == "reverse" and length == size:
        return torch.arange(size).flip(0)
    if kind == "repeated":
        return torch.arange(length) % max(size - 1, 1)
    return torch.tensor([p.choose.randrange(size) for _ in range(length)])


def _dim(p: Program, h: Tensor) -> int:
    return p.choose.randrange(1, h.dim())


def _index_add(p: Program, h: Tensor) -> Tensor:
    dim = _dim(p, h)
    n = h.shape[dim]
    kept = p.choose.choice([h, torch.zeros_like(h), torch.ones(h.shape)])
    operation = p.choose.choice(["add", "copy", "fill", "amax", "mean"])
    index = _indices(p, n, n)
    if operation == "add":
        return kept.index_add(dim, index, h.tanh())
    if operation == "copy":
        return kept.index_copy(dim, index, h.tanh())
    if operation == "fill":
        return h.index_fill(dim, index[: n // 2], 0.3)
    return kept.index_reduce(dim, index, h.tanh(), operation)


def _scatter(p: Program, h: Tensor) -> Tensor:
    dim = _dim(p, h)
    n = h.shape[dim]
    along = p.choose.randrange(h.dim())
    view = [1] * h.dim()
    view[along] = -1
    index = _indices(p, n, h.shape[along]).view(view).expand(h.shape)
    if p.choose.random() < 0.3:
        index = index.contiguous()
    operation = p.choose.choice(["scatter", "value", "add", "amax", "mean", "gather"])
    if operation == "scatter":
        return h.scatter(dim, index, h.tanh())
    if operation == "value":
        return h.scatter(dim, index, 0.3)
    if operation == "add":
        return torch.zeros_like(h).scatter_add(dim, index, h.tanh())
    if operation == "gather":
        return h.gather(dim, index)
    return torch.zeros_like(h).scatter_reduce(dim, index, h.tanh(), operation)


def _index_put(p: Program, h: Tensor) -> Tensor:
    n = h.shape[1]
    kind = p.choose.choice(["accumulate", "assign", "grid", "mask", "repeated names"])
    index = _indices(p, n, n)
    if kind == "accumulate":
        return h.index_put((torch.arange(len(h))[:, None], index), h.tanh(), accumulate=True)
    if kind == "assign":
        return h.index_put((torch.arange(len(h))[:, None], index), h.tanh())
    if kind == "grid":
        out = torch.zeros_like(h)
        out[:, index] = h.tanh()
        return out
    if kind == "mask":
        out = h * 1.0
        out[p.choose.choice([h > 0.5, torch.arange(n).expand(len(h), n) == 0])] = 0.1
        return out
    out = h * 1.0
    rows = torch.arange(n)[:, None].expand(n, 2)
    out[:, rows] = torch.stack([h.tanh(), h.sin()], 2)
    return out


def _sections(p: Program, h: Tensor) -> Tensor:
    dim = _dim(p, h)
    n = h.shape[dim]
    kind = p.choose.choice(["select", "slice", "beside", "steps", "view"])
    if kind == "select":
        return h.select_scatter(h.select(dim, 0).tanh(), dim, p.choose.randrange(n))
    if kind == "slice":
        return h.slice_scatter(h.narrow(dim, 1, n - 1).tanh(), dim, 0, n - 1)
    out = torch.full((*h.shape[:dim], 2 * n, *h.shape[dim + 1 :]), 0.2)
    if kind == "beside":
        out.narrow(dim, 0, n).copy_(h)
        out.narrow(dim, n, n).copy_(h.tanh())
        return out.narrow(dim, p.choose.choice([0, 1, n]), n)
    if kind == "steps":
        out.movedim(dim, 0)[::2] = h.movedim(dim, 0)
        return out.narrow(dim, 0, n)
    out.view(-1)[: h.numel()] = h.flatten()
    return out.narrow(dim, 0, n)


def _write_part(p: Program, h: Tensor) -> Tensor:
    h = h * 1.0
    view = p.choose.choice([h[1:], h[:, :2], h.transpose(0, 1)[1:], h.data, h.reshape(-1)[::2]])
    view.mul_(p.choose.choice([0.5, 2.0]))
    return h if p.choose.random() < 0.7 else h + view.sum()


def _fourier(p: Program, h: Tensor) -> Tensor:
    dim = _dim(p, h)
    kind = p.choose.choice(["real", "complex", "filter"])
    if kind == "real":
        return torch.fft.fft(h, dim=dim).abs() / h.shape[dim]
    if kind == "complex":
        return torch.fft.ifft(torch.polar(h.exp().clamp(max=2.0), h), dim=dim).real
    spectrum = torch.fft.rfft(h, dim=dim)
    weights = torch.complex(p.weight(*spectrum.shape[1:]), p.weight(*spectrum.shape[1:]))
    return torch.fft.irfft(spectrum * weights.conj(), n=h.shape[dim], dim=dim)


def _complex_pairs(p: Program, h: Tensor) -> Tensor:
    if h.shape[-1] % 2:
        return torch.view_as_real(torch.complex(h, h.sin())).sum(-1)
    pairs = torch.view_as_complex(h.reshape(*h.shape[:-1], -1, 2).contiguous())
    return torch.cat([pairs.real, (pairs * pairs).imag], -1)


def _gated(p: Program, h: Tensor) -> Tensor:
    dim = _dim(p, h)
    return F.glu(torch.cat([h, h.sin()], dim), dim) if p.choose.random() < 0.5 else _halves(h, dim)


def _halves(h: Tensor, dim: int) -> Tensor:
    return F.glu(h, dim) if h.shape[dim] % 2 == 0 and h.shape[dim] > 2 else h


def _comparison(p: Program, h: Tensor) -> Tensor:
    target = torch.full(h.shape, p.choose.choice([0.3, 1.0]))
    loss = p.choose.choice([F.binary_cross_entropy_with_logits, F.smooth_l1_loss, F.mse_loss])
    return loss(h, target, reduction="none")


for _rank in STEPS:
    STEPS[_rank] += [
        *(_index_add, _index_add, _scatter, _scatter, _index_put, _sections, _sections),
        *(_write_part, _write_part, _fourier, _complex_pairs, _gated, _comparison),
    ]


@steps(2)
def _edges(p: Program, h: Tensor) -> Tensor:
    """Messages along the edges of a graph whose nodes are the data."""
    source = torch.tensor([p.choose.randrange(len(h)) for _ in range(5)])
    target = torch.tensor([p.choose.randrange(len(h)) for _ in range(5)])
    messages = torch.tanh(h[source] * p.weight(h.shape[1]))
    return torch.zeros_like(h).index_add(0, target, messages)


@steps(2)
def _sparse(p: Program, h: Tensor) -> Tensor:
    graph = torch.tensor([[p.choose.randrange(2) for _ in h] for _ in h]).to(h)
    kind = p.choose.choice(["constant", "latent", "values", "units"])
    if kind == "constant":
        return torch.sparse.mm(graph.to_sparse(), h)
    if kind == "latent":
        w = p.weight(h.shape[1], 4)
        return torch.sparse.mm(w.T.to_sparse(), h.T).T
    if kind == "values":
        index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
        shape = len(h), len(h)
        return torch.sparse_coo_tensor(index, p.weight(4), shape, check_invariants=False) @ h
    units = torch.eye(h.shape[1]) + p.choose.choice([0.0, 1.0]) * torch.eye(h.shape[1]).roll(1, 0)
    return torch.sparse.mm(units.to_sparse(), h.T).T


@steps(2)
def _solve(p: Program, h: Tensor) -> Tensor:
    w = p.weight(h.shape[1], 3)
    matrix = w @ w.T + torch.eye(h.shape[1])
    kind = p.choose.choice(["solve", "inverse", "determinant", "cholesky", "spectrum"])
    if kind == "solve":
        return torch.linalg.solve(matrix, h.T).T
    if kind == "inverse":
        return h @ torch.linalg.inv(matrix)
    if kind == "determinant":
        return h + torch.linalg.slogdet(matrix)[1]
    if kind == "spectrum":
        return h + torch.linalg.eigvalsh(matrix).sum()
    return torch.cholesky_solve(h.T, torch.linalg.cholesky(matrix)).T


@steps(4)
def _group_norm_of_a_concatenation(p: Program, h: Tensor) -> Tensor:
    other = F.conv2d(h, p.weight(p.choose.choice([1, 2, 3]), h.shape[1], 1, 1))
    both = torch.cat([h, other], 1)
    groups = [g for g in (1, 2, 3) if both.shape[1] % g == 0]
    return F.group_norm(both, p.choose.choice(groups))


@steps(4)
def _shuffle(p: Program, h: Tensor) -> Tensor:
    if h.shape[1] % 4 == 0 and p.choose.random() < 0.5:
        return F.pixel_shuffle(h, 2)
    return F.channel_shuffle(h, 2) if h.shape[1] % 2 == 0 else h


@steps(4)
def _patches(p: Program, h: Tensor) -> Tensor:
    columns = F.unfold(h, 2)
    return F.fold(columns.tanh(), h.shape[2:], 2)
