"""By which powers of ``c`` the entries of a single unit may be multiplied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from pyro_perm.discovery.gradings.dataflow import Demands, GradedJoint, Sites, Unknown
from pyro_perm.discovery.gradings.linear_equations import LinearForm, sparse_basis, unit_form
from pyro_perm.discovery.gradings.rules import SCALES
from pyro_perm.discovery.permutations.expressions import Reason
from pyro_perm.discovery.recording.graph import Graph, Node
from pyro_perm.discovery.recording.log_joint import LogJoint


@dataclass(frozen=True)
class _Question:
    """By which powers the entries along some axes may be multiplied.

    Attributes:
        factors: the factors of the log joint that must not change.
        unknowns: the axes on which these depend.
        fixed: sites that cannot be rescaled whatever the likelihood is, with the reasons.
        free: the unknowns of the other sites.
        demands: what must hold for these.
    """

    factors: list[str]
    unknowns: list[Unknown]
    fixed: Mapping[str, Reason]
    free: list[Unknown]
    demands: Demands

    def along(self, solution: tuple[int, ...]) -> dict[Unknown, int]:
        """The degrees of a solution that are not zero, those of incoming entries positive."""
        oriented = _oriented(solution, self.demands.forms)
        return {unknown: d for unknown, d in zip(self.free, oriented, strict=True) if d}


@dataclass(frozen=True)
class UnitScaling:
    """Finds the degrees of a unit's entries along the axes of its group.

    No factor of the log joint may change, except the priors of the sites that are rescaled. These
    must depend on nothing else that is.

    Attributes:
        joint: the recorded log joint.
        unscalable: sites that cannot be rescaled because of their own prior, with the reasons.
    """

    joint: LogJoint
    unscalable: Mapping[str, str]

    def degrees(self, sites: Sites) -> tuple[dict[Unknown, int], Reason | None]:
        """The degrees that are not zero, or the reason why all are.

        Of several solutions the one with the smallest degrees is taken, of these the one along most
        axes. The degrees have no common divisor, and those of incoming entries are positive: what
        the model first computes from data is multiplied by a positive power.

        :param sites: site -> the axes along which the units lie; the first unit is rescaled.
        """
        if self.joint.factors.keys() <= self.joint.latents.keys():
            return {}, Reason("the model observes nothing")
        question = self._question(sites)
        solutions = [_primitive(x) for x in question.demands.equations.solutions()]
        if not solutions:
            return {}, self._why_none(question)
        return question.along(min(solutions, key=_unnaturalness)), None

    def independent_degrees(self, sites: Sites) -> Iterator[dict[Unknown, int]]:
        """The degrees of independent rescalings, each of as few of some axes as possible.

        :param sites: site -> its axes, as in :meth:`degrees`.
        """
        if self.joint.factors.keys() <= self.joint.latents.keys():
            return
        question = self._question(sites)
        basis = sparse_basis(question.demands.equations.solutions(), SCALES.field)
        yield from (question.along(_primitive(solution)) for solution in basis)

    def _question(self, sites: Sites) -> _Question:
        factors = [site for site in self.joint.factors if site not in sites]
        used = _sites_among(self.joint.graph, [self.joint.factors[site] for site in factors])
        unknowns = [(site, axis) for site in used if site in sites for axis in sites[site]]
        fixed = {site: why for site in sites if (why := self._why_fixed(site, sites)) is not None}
        free = [(site, axis) for site, axis in unknowns if site not in fixed]
        return _Question(factors, unknowns, fixed, free, self._graded.demands(free, factors))

    def _why_none(self, question: _Question) -> Reason:
        """Why there is no solution: the likelihood, or sites that are fixed on top of it."""
        unknowns = question.unknowns
        if not unknowns:
            return Reason("no likelihood depends on the group's sites")
        unfixed = self._graded.demands(unknowns, question.factors).equations
        for k, (site, _) in enumerate(unknowns):
            if unfixed.has_solutions and site in question.fixed:
                unfixed.add(unit_form(k, len(unknowns)), question.fixed[site])
                if not unfixed.has_solutions:
                    return question.fixed[site]
        cause = question.demands.equations.cause or unfixed.cause
        assert cause is not None  # an equation forced an unknown to be zero
        return cause

    def _why_fixed(self, site: str, sites: Sites) -> Reason | None:
        """Why a site of a group cannot be rescaled, whatever the likelihood is."""
        latent = self.joint.latents[site]
        fed = next((other for other in sites if site in self._parents[other]), None)
        text = latent.excluded or self.unscalable.get(site)
        if text is None and fed is not None:
            text = f"site '{site}' feeds the prior of site '{fed}'"
        if text is None and self._depends_on_enumerated(site):
            text = f"the prior of site '{site}' depends on an enumerated variable"
        return None if text is None else Reason(text, latent.source)

    @cached_property
    def _graded(self) -> GradedJoint:
        return GradedJoint(self.joint, SCALES)

    @cached_property
    def _parents(self) -> dict[str, set[str]]:
        """The latent sites on which the prior of each site depends."""
        graph = Graph([call for call in self.joint.graph.calls if not call.is_read])
        return {
            site: set(_sites_among(graph, [self.joint.factors[site]])) - {site}
            if site in self.joint.factors
            else set()
            for site in self.joint.latents
        }

    def _depends_on_enumerated(self, site: str) -> bool:
        factor = self.joint.factors.get(site)
        shape = () if factor is None else factor.shape
        return any(size > 1 for size in shape[: len(shape) - self.joint.max_plate_nesting])


def _sites_among(graph: Graph, outputs: list[Node]) -> list[str]:
    """The latent sites on which some tensors depend, in the order of their use."""
    used = (node.site for call in graph.live_calls(outputs) for node in call.inputs)
    return [site for site in dict.fromkeys(used) if site is not None]


def _primitive(solution: LinearForm) -> tuple[int, ...]:
    """The integers without a common divisor, the first of them positive, in some proportion."""
    denominator = math.lcm(*(x.denominator for x in solution))
    integers = [int(x * denominator) for x in solution]
    divisor = math.gcd(*integers)
    sign = 1 if next(filter(None, integers)) > 0 else -1
    return tuple(sign * x // divisor for x in integers)


def _oriented(degrees: tuple[int, ...], forms: list[LinearForm]) -> tuple[int, ...]:
    """The degrees or their opposites, such that the first of some linear forms is positive."""
    values = [sum(x * d for x, d in zip(form, degrees, strict=True)) for form in forms]
    sign = -1 if next((value for value in values if value), 1) < 0 else 1
    return tuple(sign * degree for degree in degrees)


def _unnaturalness(degrees: tuple[int, ...]) -> tuple[int, int]:
    return max(map(abs, degrees)), -sum(map(bool, degrees))
