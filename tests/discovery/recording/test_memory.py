"""Where tensors that share memory have their entries, and what writes through views do."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import groups_of, normal, written
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from torch import Tensor

from pyro_perm.discovery import find_symmetry
from pyro_perm.discovery.recording.memory import overlap, places_of, storages_of

X, Y = torch.linspace(-1, 1, 12).view(4, 3).double(), torch.linspace(0, 1, 4).double()


@st.composite
def views(draw: st.DrawFn, base: Tensor, max_steps: int = 3) -> Tensor:
    """A view of a tensor, by a few random operations."""
    view = base
    for _ in range(draw(st.integers(0, max_steps))):
        dim = draw(st.integers(0, view.dim() - 1)) if view.dim() else None
        kind = draw(st.sampled_from(["select", "narrow", "step", "transpose", "diagonal", "flat"]))
        if dim is None or not view.numel():
            break
        if kind == "select":
            view = view.select(dim, draw(st.integers(0, view.shape[dim] - 1)))
        elif kind == "narrow":
            start = draw(st.integers(0, view.shape[dim] - 1))
            view = view.narrow(dim, start, draw(st.integers(1, view.shape[dim] - start)))
        elif kind == "step":
            view = view.movedim(dim, 0)[draw(st.integers(0, 1)) :: 2].movedim(0, dim)
        elif kind == "transpose":
            view = view.transpose(0, dim)
        elif kind == "diagonal" and view.dim() > 1:
            view = view.diagonal(dim1=0, dim2=1)
        elif kind == "flat" and view.is_contiguous():
            view = view.view(-1)
    return view


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_a_place_is_where_the_entry_is(data: st.DataObject) -> None:
    base = torch.arange(24).view(2, 3, 4)
    part, container = data.draw(views(base)), data.draw(views(base))
    common = set(part.flatten().tolist()) & set(container.flatten().tolist())
    assert overlap(part, container) == bool(common)
    places = places_of(part, container)
    if places is None:
        return
    assert len(common) == part.numel() > 0
    for index in itertools.product(*map(range, part.shape)):
        found = container
        for dim, place in reversed(list(enumerate(places))):
            if not place.varies_along:
                along = 0 if place.along is None else index[place.along]
                found = found.select(dim, place.start + along)
        assert int(part[index]) in found.flatten().tolist()


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_slices_are_found_exactly(data: st.DataObject) -> None:
    base = torch.arange(60).view(3, 4, 5)
    starts = [data.draw(st.integers(0, size - 2)) for size in base.shape]
    part = base[tuple(slice(start, start + 2) for start in starts)].permute(2, 0, 1)
    places = places_of(part, base)
    assert places is not None
    assert [place.start for place in places] == starts
    assert [place.along for place in places] == [1, 2, 0]


def test_entries_outside_or_shared_have_no_place() -> None:
    base = torch.arange(12).view(3, 4)
    assert places_of(base, base[:2]) is None
    assert places_of(base[0], base.as_strided((3, 3), (1, 1))) is None
    assert places_of(base[:0], base) is None


def test_views_of_another_type_overlap_by_their_bytes() -> None:
    pairs = torch.zeros(4, dtype=torch.complex128)
    reals = torch.view_as_real(pairs)
    assert overlap(pairs[:1], reals[0]) and not overlap(pairs[:1], reals[1:])
    assert places_of(pairs, reals) is None


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_tensors_have_the_memory_of_their_parts() -> None:
    coo = torch.eye(3).to_sparse()
    assert set(storages_of(coo)) == {
        coo._indices().untyped_storage().data_ptr(),
        coo._values().untyped_storage().data_ptr(),
    }
    csr = torch.eye(3).to_sparse_csr()
    assert csr.values().untyped_storage().data_ptr() in storages_of(csr)


def observe(mean: Tensor) -> None:
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=Y)


def one_by_one_in_time(x: Tensor) -> None:
    """A recurrent network that writes its states into an empty tensor."""
    w, u, states = normal("w", 4, 4), normal("u", 4), torch.zeros(4, 3, 4)
    for t in range(3):
        before = states[:, t - 1] if t else torch.zeros(4, 4)
        states[:, t] = torch.tanh(x[:, t : t + 1] * u + before @ w)
    observe(states.mean(1) @ normal("o", 4))


def halves(x: Tensor) -> None:
    """Two layers beside each other in one tensor that was not empty."""
    h = torch.full((4, 7), 0.5)
    h[:, :3] = torch.tanh(x @ normal("a", 3, 3))
    h[:, 3:6] = torch.relu(x @ normal("b", 3, 3))
    observe(h @ normal("o", 7))


def coloured(x: Tensor) -> None:
    """What was there before tells units apart where it is not overwritten."""
    h = torch.arange(4.0).repeat(4, 1)
    h[:2] = torch.tanh(x[:2] @ normal("w", 3, 4))
    observe(h @ normal("o", 4))


def transposed(x: Tensor) -> None:
    h = torch.zeros(4, 4)
    h.T.copy_((x @ normal("w", 3, 4)).T)
    observe(h @ normal("o", 4))


def diagonal(x: Tensor) -> None:
    w, noise = normal("w", 4, 2), normal("noise", 4)
    covariance = w @ w.T
    covariance.diagonal().add_(noise.exp())
    observe((covariance**2).sum((0, 1)).expand(4))


def aliased(x: Tensor) -> None:
    observe(torch.tanh(x @ normal("w", 3, 4)).data @ normal("o", 4).data)


def written_alias(x: Tensor) -> None:
    h = torch.tanh(x @ normal("w", 3, 4))
    h.data[:, 0] = 0.0
    observe(h @ normal("o", 4))


def read_from_an_older_view(x: Tensor) -> None:
    h = x @ normal("w", 3, 4)
    first = h[:, :2]
    h.tanh_()
    observe(first @ normal("o", 2) + h @ normal("p", 4))


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        (one_by_one_in_time, ["w[-2] w[-1] u[-1] o[-1]"]),
        (halves, ["a[-1] o[-1:0..2]", "b[-1] o[-1:3..5]"]),
        (coloured, []),
        (transposed, ["w[-1] o[-1]"]),
        (diagonal, ["w[-2] noise[-1]", "w[-1]"]),
        (aliased, ["w[-1] o[-1]"]),
        (written_alias, ["w[-1:1..3] o[-1:1..3]"]),
        (
            read_from_an_older_view,
            ["w[-1:0..1] o[-1] p[-1:0..1]", "w[-1:2..3] p[-1:2..3]"],
        ),
    ],
)
def test_writes_are_followed_through_views(model: object, groups: list[str]) -> None:
    assert groups_of(find_symmetry(model, X)) == written(groups)


def test_what_cannot_be_followed_is_frozen_with_advice() -> None:
    def model(x: Tensor) -> None:
        h = torch.tanh(x @ normal("w", 3, 4))
        h.view(-1)[1:].mul_(2.0)
        observe(h @ normal("o", 4))

    symmetry = find_symmetry(model, X)
    assert not symmetry
    reason = "written in place through a view; use torch.stack or torch.cat (test_memory.py:"
    assert reason in symmetry.reasons["w[-1]"]
