"""The likelihood of a model, observation by observation.

Terms of the log joint density are the prior's where they hold latent sites alone, and the
likelihood's where they hold observations or factors (``pyro.factor``). Those of the likelihood have
a place in a pointwise log-likelihood where an entry of them belongs to one observation:

- An observed site has one, also where discrete latent sites are summed out in it, plate by plate;
  several sites that cannot be told apart then have one together.
- A factor has one if it lies in a plate, and no latent site in the same plate. With a single
  observed site in the same plates it is added to that site's: right-censored observations, say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_perm.program.full_data import FullData, Term
from pyro_perm.program.sites import SiteKind


@dataclass(frozen=True)
class Pointwise:
    """A model's log-likelihood, observation by observation.

    Attributes:
        terms: name -> terms whose ``log_prob`` add up to it: of an observed site, or the factor's.
        unplaced: reasons why other terms of the likelihood have no place in it.
    """

    terms: dict[str, tuple[Term, ...]]
    unplaced: dict[str, str]

    def log_probs(self) -> dict[str, Tensor]:
        """Log-likelihood of each observation, without any scale, in nats."""
        return {
            name: sum((term.log_prob for term in rest), first.log_prob)
            for name, (first, *rest) in self.terms.items()
        }


def likelihood_terms(model: FullData, terms: Iterable[Term]) -> list[Term]:
    """The terms that hold observations or factors.

    :raises ValueError: if one of them holds latent sites too.
    """
    chosen = []
    for term in terms:
        if _of(model, term, SiteKind.OBSERVATION, SiteKind.FACTOR):
            latent = _of(model, term, SiteKind.LATENT)
            if latent:
                raise ValueError(_why_mixed(term, latent))
            chosen.append(term)
    return chosen


def pointwise(model: FullData, terms: Sequence[Term]) -> Pointwise:
    """Give every term of the likelihood its place."""
    placed: dict[str, tuple[Term, ...]] = {}
    unplaced: dict[str, str] = {}
    factors: list[Term] = []
    for term in terms:
        observed = _of(model, term, SiteKind.OBSERVATION)
        name = "_".join(observed or term.sites)
        if not observed:
            factors += [term] if _of(model, term, SiteKind.FACTOR) else []
        elif _of(model, term, SiteKind.LATENT):
            unplaced[name] = _why_mixed(term, _of(model, term, SiteKind.LATENT))
        elif any(model.sites[site].plates for site in observed) and not term.plates:
            unplaced[name] = (
                f"{_names(term.summed_out)}, summed out, ties all entries of {_names(observed)} "
                "together"
            )
        else:
            placed[name] = (term,)
    for term in factors:
        name = "_".join(term.sites)
        why = _why_unplaced(model, term)
        if why is not None:
            unplaced[name] = why
            continue
        hosts = [host for host in placed if _same_plates(placed[host][0], term)]
        if len(hosts) == 1:
            placed[hosts[0]] += (term,)
        else:
            placed[name] = (term,)
    return Pointwise(placed, unplaced)


def _why_unplaced(model: FullData, factor: Term) -> str | None:
    if not factor.plates:
        return (
            f"factor {_names(factor.sites)} lies in no plate, so it has no entry for each "
            "observation: put it into the plate of its observations, if it is part of the "
            "likelihood"
        )
    for name in model.names(SiteKind.LATENT):
        shared = set(model.sites[name].plates.values()) & set(factor.plates.values())
        if shared:
            return (
                f"factor {_names(factor.sites)} shares plate '{min(shared)}' with the latent site "
                f"'{name}', so it may belong to the prior: if it is part of the likelihood, write "
                "it as an observation, such as pyro.sample(name, Bernoulli(logits=...), obs=ones)"
            )
    return None


def _why_mixed(term: Term, latent: Sequence[str]) -> str:
    return (
        f"{_names(term.summed_out)}, summed out, ties {_names(term.sites)} together, so that the "
        f"likelihood cannot be told from the prior of {_names(latent)}"
    )


def _of(model: FullData, term: Term, *kinds: SiteKind) -> list[str]:
    return [site for site in term.sites if site in model.sites and model.sites[site].kind in kinds]


def _same_plates(one: Term, other: Term) -> bool:
    return set(one.plates.values()) == set(other.plates.values())


def _names(sites: Iterable[str]) -> str:
    return ", ".join(map(repr, sites))
