"""Every rule against its operation: moving the arguments moves the results, as the rule says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_analysis import Analysis, Operation, tensors
from torch import Tensor

from pyro_perm.discovery.permutations.expressions import atoms_of, resolve

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        *("index_reduce.. is in beta", "Sparse CSR tensor support is in beta"),
        *("Sparse invariant checks are implicitly disabled",),
    )
]

IN_ORDER, REVERSED = torch.arange(4), torch.arange(4).flip(0)
TWICE = torch.tensor([0, 2, 2, 0])


def spd(x: Tensor) -> Tensor:
    return x @ x.mT + torch.eye(x.shape[-2])


# name -> operation, shapes of its arguments
OPERATIONS: dict[str, tuple[Operation, list[tuple[int, ...]]]] = {
    "index_add": (lambda x, y: x.index_add(0, TWICE, y), [(4, 3), (4, 3)]),
    "index_add by names": (lambda x, y: x.index_add(0, IN_ORDER, y), [(4, 3), (4, 3)]),
    "index_add to one row": (
        lambda x, y: x.index_add(0, torch.zeros(4, dtype=torch.long), y),
        [(2, 3), (4, 3)],
    ),
    "index_copy": (lambda x, y: x.index_copy(0, TWICE, y), [(4, 3), (4, 3)]),
    "index_fill": (lambda x: x.index_fill(1, TWICE, 0.5), [(3, 4)]),
    "index_reduce": (lambda x, y: x.index_reduce(0, TWICE, y, "amax"), [(4, 3), (4, 3)]),
    "scatter": (lambda x, y: x.scatter(0, TWICE[:, None].expand(4, 3), y), [(4, 3), (4, 3)]),
    "scatter by columns": (lambda x, y: x.scatter(0, IN_ORDER.expand(4, 4), y), [(4, 4), (4, 4)]),
    "scatter of fewer": (
        lambda x, y: x.scatter(0, TWICE[:, None].expand(4, 2), y),
        [(4, 3), (4, 2)],
    ),
    "scatter a value": (lambda x: x.scatter(1, TWICE.expand(3, 4), 0.5), [(3, 4)]),
    "scatter_add": (
        lambda x, y: x.scatter_add(0, TWICE[:, None].expand(4, 3), y),
        [(4, 3), (4, 3)],
    ),
    "scatter_reduce": (
        lambda x, y: x.scatter_reduce(1, TWICE.expand(3, 4), y, "mean"),
        [(3, 4), (3, 4)],
    ),
    "index_put": (lambda x, y: x.index_put((IN_ORDER[:, None], TWICE), y), [(4, 4, 3), (4, 4, 3)]),
    "index_put, repeated names": (
        lambda x, y: x.index_put((IN_ORDER[:, None].expand(4, 2),), y),
        [(4, 3), (4, 2, 3)],
    ),
    "index_put, accumulated": (
        lambda x, y: x.index_put((TWICE,), y, accumulate=True),
        [(4, 3), (4, 3)],
    ),
    "index_put by a mask": (
        lambda x, y: x.index_put((y > 0,), torch.tensor(0.5)),
        [(4, 3), (4, 3)],
    ),
    "select_scatter": (lambda x, y: x.select_scatter(y, 1, 2), [(3, 4), (3,)]),
    "slice_scatter": (lambda x, y: x.slice_scatter(y, 1, 1, 4), [(3, 6), (3, 3)]),
    "slice_scatter in steps": (lambda x, y: x.slice_scatter(y, 1, 0, 6, 2), [(3, 6), (3, 3)]),
    "diagonal_scatter": (lambda x, y: x.diagonal_scatter(y), [(4, 4), (4,)]),
    "rfft": (lambda x: torch.fft.rfft(x, dim=1), [(3, 6, 2)]),
    "irfft": (lambda x, y: torch.fft.irfft(torch.complex(x, y), n=6, dim=0), [(4, 3)] * 2),
    "fft": (lambda x: torch.fft.fft2(x, dim=(0, 2)), [(3, 4, 5)]),
    "polar": (torch.polar, [(3, 4), (4,)]),
    "view_as_real": (lambda x, y: torch.view_as_real(torch.complex(x, y)), [(3, 4)] * 2),
    "view_as_complex": (torch.view_as_complex, [(3, 4, 2)]),
    "conj": (lambda x, y: torch.complex(x, y).conj() @ torch.complex(y, x).mT, [(3, 4)] * 2),
    "to_dense": (lambda x: x.to_sparse().to_dense(), [(3, 4)]),
    "sparse product": (lambda x, y: torch.sparse.mm(x.to_sparse(), y), [(3, 4), (4, 2)]),
    "sparse sum": (lambda x: torch.sparse.sum(x.to_sparse(), 1).to_dense(), [(3, 4)]),
    "sparse softmax": (lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(), [(3, 4)]),
    "sparse of both": (
        lambda x, y: torch.sparse.mm(x.to_sparse(), y.to_sparse()).to_dense(),
        [(3, 4), (4, 2)],
    ),
    "sparse from values": (
        lambda x, y: torch.sparse_coo_tensor(torch.stack([TWICE, TWICE]), x, (4, 4)) @ y,
        [(4,), (4, 3)],
    ),
    "inverse beside an identity": (lambda x: torch.linalg.inv(x + 5 * torch.eye(4)), [(4, 4)]),
    "inverse of any": (torch.linalg.inv, [(2, 4, 4)]),
    "solve": (torch.linalg.solve, [(2, 4, 4), (2, 4, 3)]),
    "solve a vector": (torch.linalg.solve, [(4, 4), (4,)]),
    "solve from the right": (lambda x, y: torch.linalg.solve(x, y, left=False), [(4, 4), (3, 4)]),
    "det": (torch.linalg.det, [(2, 4, 4)]),
    "slogdet": (torch.linalg.slogdet, [(4, 4)]),
    "logabsdet": (lambda x: torch.linalg.slogdet(x)[1], [(4, 4)]),
    "eigvalsh": (lambda x: torch.linalg.eigvalsh(x + x.mT), [(4, 4)]),
    "eigh": (lambda x: torch.linalg.eigh(x + x.mT), [(2, 4, 4)]),
    "svdvals": (torch.linalg.svdvals, [(3, 4)]),
    "matrix_exp": (torch.linalg.matrix_exp, [(4, 4)]),
    "cholesky_solve": (
        lambda x, y: torch.cholesky_solve(y, torch.linalg.cholesky(spd(x))),
        [(2, 4, 4), (2, 4, 3)],
    ),
    "solve_triangular": (
        lambda x, y: torch.linalg.solve_triangular(x, y, upper=True, left=False),
        [(4, 4), (3, 4)],
    ),
    "solve_triangular, broadcast": (
        lambda x, y: torch.linalg.solve_triangular(x, y, upper=True),
        [(4, 4), (3, 4, 2)],
    ),
    "cross": (lambda x, y: torch.linalg.cross(x, y, dim=1), [(4, 3), (4, 3)]),
    "glu": (lambda x: F.glu(x, 1), [(3, 6)]),
    "bilinear": (F.bilinear, [(5, 3), (5, 4), (2, 3, 4), (2,)]),
    "pdist": (F.pdist, [(4, 3)]),
    "group_norm": (lambda x: F.group_norm(x, 2), [(3, 6, 2)]),
    "group_norm of a concatenation": (
        lambda x, y: F.group_norm(torch.cat([x, y], 1), 2),
        [(2, 3, 2), (2, 5, 2)],
    ),
    "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), [(4, 3), (4, 1)]),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), [(2, 12, 2, 3)]),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), [(2, 3, 4, 6)]),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), [(2, 6, 2, 2)]),
    "flip": (lambda x, y: x.flip(0, 1) + y, [(3, 4), (4,)]),
    "roll": (lambda x, y: x.roll((1, -1), (0, 1)) + y, [(3, 4), (4,)]),
    "roll of all entries": (lambda x, y: x.roll(5) @ y, [(3, 4), (4, 2)]),
    "an order of columns": (lambda x, y: x[:, [2, 0, -1, 1]] + y, [(3, 4), (4,)]),
    "an order of rows": (
        lambda x, y: x.index_select(0, torch.tensor([2, 0, 1])) @ y,
        [(3, 4), (4, 2)],
    ),
    "norm of all entries": (lambda x: torch.norm(x) + torch.ops.aten.norm.Scalar(x, 3), [(3, 4)]),
    "unfold": (lambda x: F.unfold(x, 2), [(2, 3, 4, 4)]),
    "fold": (lambda x: F.fold(x, (3, 3), 2), [(2, 12, 4)]),
    "embedding_bag": (
        lambda x: F.embedding_bag(torch.tensor([[0, 1], [1, 3]]), x, mode="sum"),
        [(4, 3)],
    ),
    "max_unpool2d": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        [(2, 3, 4, 4)],
    ),
    "grid_sample": (
        lambda x, y: F.grid_sample(x, y, align_corners=False),
        [(2, 3, 4, 4), (2, 3, 5, 2)],
    ),
    "conv_tbc": (F.conv_tbc, [(5, 2, 3), (2, 3, 4), (4,)]),
    "nll_loss": (lambda x: F.nll_loss(x, torch.tensor([0, 2, 2]), reduction="none"), [(3, 4)]),
    "nll_loss of places": (
        lambda x: F.nll_loss(x, torch.zeros(2, 3, 3, dtype=torch.long)),
        [(2, 4, 3, 3)],
    ),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, torch.tensor([1, 1, 0])), [(3, 4)]),
    "cross entropy of outcomes": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="none"),
        [(3, 4), (3, 4)],
    ),
    "aminmax": (lambda x: torch.aminmax(x, dim=1), [(3, 4)]),
    "median": (lambda x: x.median(1)[0], [(3, 5)]),
    "rows of a median": (lambda x: x.median(1), [(3, 5)]),
    "an alias": (lambda x, y: x.data * y, [(3, 4), (4,)]),
    "a write through a slice": (
        lambda x, y: _written(x, lambda h: h[:, 1:3].mul_(y)),
        [(3, 6), (2,)],
    ),
    "a write through a diagonal": (
        lambda x, y: _written(x, lambda h: h.diagonal().add_(y)),
        [(4, 4), (4,)],
    ),
    "a write of every second": (
        lambda x, y: _written(x, lambda h: h[:, ::2].copy_(y)),
        [(3, 6), (3, 3)],
    ),
}


def _written(x: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    h = x * 1.0
    write(h)
    return h


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_move_with_their_arguments(name: str) -> None:
    operation, shapes = OPERATIONS[name]
    values = [torch.randn(shape) for shape in shapes]
    analysis = Analysis(operation, [value.clone() for value in values])
    before = tensors(operation(*(value.clone() for value in values)))
    has_moved = False
    for _ in range(6):
        permutations = analysis.permutations()
        moved = [
            analysis.move(*pair, permutations)
            for pair in zip(analysis.arguments, values, strict=True)
        ]
        after = tensors(operation(*(value.clone() for value in moved)))
        for node, old, new in zip(analysis.results, before, after, strict=True):
            torch.testing.assert_close(new, analysis.move(node, old, permutations))
        has_moved = has_moved or not all(map(torch.equal, moved, values))
    assert has_moved == (name != "scatter of fewer")


@pytest.mark.parametrize("name", OPERATIONS)
def test_moving_one_argument_alone_is_noticed(name: str) -> None:
    """The control: what two arguments share may not be permuted in one of them."""
    operation, shapes = OPERATIONS[name]
    values = [torch.randn(shape) for shape in shapes]
    analysis = Analysis(operation, [value.clone() for value in values])
    first, *others = (
        {atom for axis in analysis.interpreter.axes(node) for atom in atoms_of(resolve(axis))}
        for node in analysis.arguments
    )
    shared = [atom for atom in analysis.atoms if atom in first.intersection(*others) and others]
    results = tensors(operation(*(value.clone() for value in values)))
    for atom in shared:
        permutations = {atom: torch.arange(atom.size).roll(1)}
        alone = [analysis.move(analysis.arguments[0], values[0], permutations), *values[1:]]
        after = tensors(operation(*(value.clone() for value in alone)))
        expected = [
            analysis.move(node, result, permutations)
            for node, result in zip(analysis.results, results, strict=True)
        ]
        assert not all(map(torch.allclose, after, expected))
