"""Whether a base guide draws its sites as its density is read: each independently of the others.

A guide is a program, and may compute one site's distribution from another's value. Its density at
permuted values then is not the one that is read off its trace. So the guide runs again, on other
values of the sites that permute: the distributions of all sites must stay as they are, and the
sites be permuted as what was drawn for them is. What a guide computes outside of PyTorch, or
without a gradient, counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_perm.density.base_guides import read_sites, require_density
from pyro_perm.density.base_guides.one_vector import part_of
from pyro_perm.density.base_guides.reader import Drawn
from pyro_perm.density.factorized import STICK_BREAKING
from pyro_perm.density.gaussians import parameters_of
from pyro_perm.density.moved_delta import as_drawn
from pyro_perm.program.call import Call
from pyro_perm.program.given_values import GivenValues
from pyro_perm.program.isolation import isolation
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.elements import AnyElement, Elements
from pyro_perm.trace_sites import permute_site

Program = Callable[..., Any]
Nodes = Mapping[str, Mapping[str, Any]]
Values = Mapping[str, Tensor]

_DRAWS_OF_OTHER_VALUES = 16


class GuideProbe:
    """Runs a base guide on values of our choice, and leaves no trace.

    :param guide: the base guide; it has run before, so that its parameters exist.
    :param symmetry: the group.
    :raises ValueError: if the guide does not draw all sites of the group.
    """

    def __init__(self, guide: Call, symmetry: SymmetryGroup) -> None:
        self._guide, self._symmetry = guide, symmetry
        self._drawn: dict[str, Tensor] = {}
        self._drawn = {
            name: node["value"]
            for name, node in self._run({}).items()
            if not isinstance(node["fn"], Delta)
        }
        # Again, since a run on given values leaves other random numbers to the guide's dropout.
        self._nodes = self._run({})
        self._require_drawn_sites()
        for site in symmetry.sites:
            require_density(site, self._nodes)
        read = read_sites(self._nodes, symmetry)
        self._node_of = {site: drawn.node for site, drawn in read.items()}
        self._own_nodes = {
            site: drawn.node
            for site, drawn in read.items()
            if drawn.node != site and not self._is_part_of_vector(site, drawn)
        }

    def _require_drawn_sites(self) -> None:
        for group, sites in self._symmetry.spec.items():
            missing = [site for site in sites if site not in self._nodes]
            if missing:
                raise ValueError(
                    f"group '{group}' permutes {', '.join(map(repr, missing))}, which the guide "
                    "does not draw: draw all sites of the group in the guide, or leave the group "
                    "out, symmetry.subset(exclude=[...])"
                )

    def require_independent_sites(self) -> None:
        """Refuse guides in which a site depends on the value of a site that permutes.

        Symmetric sites may depend on others, which do not permute.

        :raises TypeError: naming the sites, with the fix.
        """
        others = self._other_values(self._symmetry.sites)
        moved = self._run(others)
        for dependent in self._changed_sites(moved):
            parents = [
                site
                for site in self._symmetry.sites
                if dependent in self._changed_sites(self._run(self._other_values([site])))
            ]
            raise TypeError(_dependence(dependent, parents or self._symmetry.sites))
        for dependent, parents in self._gradient_paths():
            raise TypeError(_dependence(dependent, parents))
        for permutations in self._generators():
            self._require_equivariant(permutations, others, moved)

    def require_reparametrized_parents(self) -> None:
        """Refuse symmetric sites that depend on one drawn without a reparametrized sample.

        The score-function term of Pyro's losses leaves out what is no site of the model.

        :raises TypeError: naming the two sites, with the fix.
        """
        for name in self._judged_sites():
            node, value = self._nodes[name], self._drawn.get(name)
            if value is None or node["fn"].has_rsample or name in self._node_of.values():
                continue
            draws = (node["fn"].sample() for _ in range(_DRAWS_OF_OTHER_VALUES))
            other = next((draw for draw in draws if not torch.equal(draw, value)), value)
            changed = set(self._changed_sites(self._run({name: other})))
            for site, drawn_for in self._node_of.items():
                if drawn_for in changed:
                    raise TypeError(
                        f"the base guide draws site '{site}' from what it drew at site '{name}' "
                        "without a reparametrized sample, and the score-function term of Pyro's "
                        "losses leaves out log q^G - log q: the gradient would be wrong. Train the "
                        "base guide itself with loss=TraceSymmetrized_ELBO(symmetry=...)"
                    )

    def _run(
        self, values: Values, context: AbstractContextManager[Any] | None = None
    ) -> dict[str, Any]:
        """The latent sites of a run on the values of the first one, save for some others."""
        guide = self._guide
        with isolation(guide.program) as writes, writes, context or nullcontext():
            given = GivenValues({**self._drawn, **values})(guide.program)
            trace = poutine.trace(given).get_trace(*guide.args, **guide.kwargs)
        return dict(trace.iter_stochastic_nodes())

    def _gradient_paths(self) -> Iterator[tuple[str, list[str]]]:
        """Sites whose parameters autograd reaches symmetric values from, and the sites of these."""
        alone = {s: n for s, n in self._node_of.items() if s == n or s in self._own_nodes}
        leaves = {site: self._drawn[node].detach().clone() for site, node in alone.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        if not leaves:
            return
        given = {alone[site]: leaf for site, leaf in leaves.items()}
        nodes = self._run(given, torch.enable_grad())
        for name in self._judged_sites():
            with torch.enable_grad():
                each = [p.sum() for p in _parameters_of(nodes[name]) if p.requires_grad]
            grads = each and torch.autograd.grad(
                each, list(leaves.values()), allow_unused=True, retain_graph=True
            )
            parents = [s for s, grad in zip(leaves, grads, strict=bool(each)) if grad is not None]
            if parents:
                yield name, parents

    def _other_values(self, sites: Iterable[str]) -> dict[str, Tensor]:
        """Values unlike those of the first run where some symmetric sites were drawn."""
        others: dict[str, Tensor] = {}
        for site in sites:
            node = self._node_of[site]
            value = others.setdefault(node, self._drawn[node].clone())
            part = value[..., self._part_of(site)]
            places = torch.arange(part.numel(), device=part.device)
            part += 1.0 + places.cos().to(part).reshape(part.shape)
        return others

    def _part_of(self, site: str) -> slice:
        """Where a site lies in the last dimension of what was drawn for it."""
        point, vector = self._nodes[site]["fn"], self._drawn[self._node_of[site]]
        part = part_of(vector, as_drawn(point)) if isinstance(point, Delta) else None
        return slice(None) if part is None else part

    def _is_part_of_vector(self, site: str, drawn: Drawn) -> bool:
        """Whether what was drawn for a site is not it alone, in its shape."""
        whole = self._drawn[drawn.node]
        rank = self._symmetry.unconstrained_rank(site)
        return whole.dim() < rank or whole.numel() != drawn.value.numel()

    def _changed_sites(self, nodes: Nodes) -> Iterator[str]:
        """Sites whose distribution is another than in the first run, the symmetric points apart."""
        yield from self._nodes.keys() ^ nodes.keys()
        for name in self._judged_sites():
            if name in nodes and not _same_distribution(self._nodes[name], nodes[name]):
                yield name

    def _judged_sites(self) -> Iterator[str]:
        """Sites with a distribution of their own: no points of symmetric values, no subsamples."""
        points = set(self._node_of) - set(self._node_of.values())
        for name, node in self._nodes.items():
            if name not in points and not site_is_subsample(node):
                yield name

    def _generators(self) -> Iterator[dict[str, AnyElement]]:
        """Elements that generate the group, those of its factors side by side."""
        generators: dict[str, list[AnyElement]] = {}
        for group, permutation in self._symmetry.generators():
            generators.setdefault(group, []).append(permutation)
        for several in zip_longest(*generators.values()):
            each = zip(generators, several, strict=True)
            yield {group: permutation for group, permutation in each if permutation is not None}

    def _require_equivariant(self, permutations: Elements, values: Values, nodes: Nodes) -> None:
        """Refuse a site whose units come from what was drawn for them by different functions.

        :param values: what was drawn, base node -> value.
        :param nodes: the run on these.
        """
        move = partial(permute_site, self._symmetry, permutations)
        permuted = {
            node: move(site, self._with_rank_of(site, values[node])).reshape(values[node].shape)
            for site, node in self._own_nodes.items()
            if not self._symmetry.is_simplex(site)
        }
        again = self._run({**values, **permuted})
        for site, node in self._own_nodes.items():
            if self._symmetry.is_simplex(site):
                expected = STICK_BREAKING(again[node]["value"])
            else:
                expected = move(site, nodes[site]["value"])
            if not _close(again[site]["value"], expected):
                raise TypeError(
                    f"the base guide computes site '{site}' from what it drew at '{node}', each "
                    "unit in its own way, so that the density at permuted values is not known: "
                    "let it transform all units alike, or draw the site itself"
                )

    def _with_rank_of(self, site: str, unconstrained: Tensor) -> Tensor:
        missing = self._symmetry.site_rank(site) - self._symmetry.unconstrained_rank(site)
        return unconstrained[(..., *[None] * missing)]


def _same_distribution(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    first, second = _parameters_of(one), _parameters_of({**other, "value": one["value"]})
    return len(first) == len(second) and all(map(_close, first, second))


def _parameters_of(node: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """What a site was drawn from: parameters, or else the log-density of its value."""
    distribution = node["fn"]
    return parameters_of(distribution) or (distribution.log_prob(node["value"].detach()),)


def _dependence(dependent: str, parents: Iterable[str]) -> str:
    return (
        f"the base guide draws site '{dependent}' from what it drew at site "
        f"{' and '.join(map(repr, parents))}, so that log q^G is not what independent sites make "
        "it: draw the sites of the symmetry independently of each other, and no other site from "
        "them; for dependent sites wrap an AutoMultivariateNormal, with "
        "estimator=ImportanceSampled(num_permutations=32)"
    )


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, equal_nan=True)
