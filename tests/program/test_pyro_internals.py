"""What the package relies on in Pyro beyond its public interface."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from examples.bayesian import normal
from pyro import poutine
from pyro.infer import HMC, MCMC
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide, AutoNormal, init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule, PyroSample, pyro_method
from pyro.ops import packed
from torch import Tensor

from pyro_perm.program._pyro_internals import (
    UnconstrainedParameter,
    announced_loc_and_scale,
    by_default,
    cast_packed,
    current_parameters,
    draws_by_locs_and_scales,
    has_all_values,
    has_run,
    is_deterministic,
    make_prototype,
    make_prototype_from,
    name_apart,
    outer_handler,
    own_calls,
    packed_dims,
    returned_value,
    share_prototype,
    stored_parameters,
)


def model() -> None:
    normal("w")


def test_handlers_come_off_a_handled_function_one_by_one() -> None:
    handled = poutine.scale(poutine.block(model, hide=["w"]), scale=2.0)
    scale, blocked = outer_handler(handled)
    assert type(scale).__name__ == "ScaleMessenger"
    block, inner = outer_handler(blocked)
    assert type(block).__name__ == "BlockMessenger"
    assert inner is model and outer_handler(model) is None


def test_a_guide_hands_its_model_on_under_an_initialization() -> None:
    for handled in (AutoNormal(model, init_loc_fn=init_to_median).model, InitMessenger(len)(model)):
        handler, inner = outer_handler(handled)
        assert isinstance(handler, InitMessenger) and inner is model


def test_partial_applications_are_no_handlers() -> None:
    assert outer_handler(functools.partial(model)) is None
    assert outer_handler(functools.partial(print, 1, 2)) is None


class Cached(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self) -> torch.Tensor:
        return self.w

    @pyro_method
    def around(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = self()
        with own_calls(iter([self])):
            own = self()
        return first, own, self()


def test_a_module_that_is_being_called_draws_anew_in_calls_of_its_own() -> None:
    first, own, after = Cached().around()
    assert first is after and own is not first


def enumerable() -> str:
    flip = dist.Bernoulli(torch.tensor(0.5))
    pyro.sample("all", flip, infer={"enumerate": "parallel"})
    pyro.sample("one", flip, obs=torch.tensor(1.0))
    pyro.deterministic("function", torch.tensor(1.0))
    return "returned"


def test_a_trace_says_what_became_of_its_sites() -> None:
    trace = poutine.trace(poutine.enum(enumerable, first_available_dim=-1)).get_trace()
    sites = {name: trace.nodes[name] for name in ("all", "one", "function")}
    assert [name for name, site in sites.items() if has_all_values(site)] == ["all"]
    assert [name for name, site in sites.items() if is_deterministic(site)] == ["function"]
    assert returned_value(trace) == "returned"
    assert not has_all_values(poutine.trace(enumerable).get_trace().nodes["all"])


def test_packed_tensors_know_the_symbols_of_their_dimensions() -> None:
    tensor = packed.pack(torch.ones(2, 1, 3), {-3: "a", -2: "b", -1: "c"})
    assert tensor.shape == (2, 3) and packed_dims(tensor) == {"a", "c"}
    narrow = cast_packed(tensor, torch.float16)
    assert narrow.dtype == torch.float16 and packed_dims(narrow) == {"a", "c"}
    assert cast_packed(tensor, tensor.dtype) is tensor
    restored = packed.unpack(narrow, {"a": -3, "b": -2, "c": -1})
    assert restored.shape == (2, 1, 3)


def in_plate() -> None:
    with pyro.plate("units", 3):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def test_a_guide_that_is_set_up_has_its_parameters() -> None:
    guide = AutoNormal(in_plate, init_scale=0.5)
    make_prototype(guide)
    [(loc, scale)] = announced_loc_and_scale(guide, ["w"]).values()
    assert loc.tolist() == [0.0] * 3
    assert torch.allclose(scale, torch.tensor(0.5))


def test_a_guide_draws_by_the_prototype_of_another_one() -> None:
    base, guide = AutoNormal(in_plate), AutoGuide(in_plate)
    make_prototype(base)
    share_prototype(guide, base)
    with pyro.plate_stack("particles", (2,), rightmost_dim=-2):
        (plate,) = guide._create_plates().values()
    assert (plate.name, plate.size, plate.dim) == ("units", 3, -1)
    assert guide.prototype_trace is base.prototype_trace


def test_a_guide_is_set_up_from_a_stand_in_for_its_model() -> None:
    def never() -> None:
        raise AssertionError

    guide = AutoNormal(never)
    own = guide.model
    state = torch.get_rng_state()
    make_prototype_from(guide, model)
    assert guide.model is own and torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in guide.named_parameters()] == [
        "locs.w_unconstrained",
        "scales.w_unconstrained",
    ]


def test_a_guide_takes_constrained_parameters_over_from_the_store() -> None:
    guide = AutoNormal(model)
    make_prototype(guide)
    assert stored_parameters(guide) == {}
    guide()
    stored, own = stored_parameters(guide), dict(guide.named_parameters())
    assert stored.keys() == own.keys() and all(stored[name] is own[name] for name in own)
    pyro.get_param_store()["AutoNormal.locs.w"] = torch.tensor(3.0)
    assert guide.locs.w != 3.0
    assert current_parameters(guide)["locs.w_unconstrained"] == 3.0
    guide()
    assert guide.locs.w == 3.0


def test_a_guide_keeps_its_own_plain_parameters() -> None:
    guide = AutoDiagonalNormal(model)
    guide()
    pyro.get_param_store()["AutoDiagonalNormal.loc"] = torch.tensor([3.0])
    guide()
    assert guide.loc != 3.0
    assert current_parameters(guide)["loc"] is guide.loc


def nested() -> None:
    pyro.sample("layer.w", dist.Normal(0.0, 1.0))


def test_parameters_are_kept_in_unconstrained_space_under_a_name_of_their_own() -> None:
    guide = AutoNormal(nested, init_scale=0.5)
    make_prototype(guide)
    kept = [UnconstrainedParameter.of(module, "layer.w") for module in (guide.locs, guide.scales)]
    for parameter, value in zip(kept, [guide.locs.layer.w, guide.scales.layer.w], strict=True):
        assert torch.equal(parameter.constrained(), value)
        assert parameter.owner.get_parameter(parameter.name).requires_grad


def test_parameters_are_announced_as_a_call_of_the_guide_announces_them() -> None:
    guide = AutoNormal(nested)
    called, read = (
        poutine.trace(function, param_only=True).get_trace()
        for function in (guide, lambda: announced_loc_and_scale(guide, ["layer.w"]))
    )
    assert called.nodes.keys() == read.nodes.keys()
    assert len(read.param_nodes) == 2
    for name in called.param_nodes:
        parameters = (trace.nodes[name]["value"].unconstrained() for trace in (called, read))
        assert len({id(parameter) for parameter in parameters}) == 1


def test_a_guide_that_reads_its_parameters_in_its_own_way_is_seen() -> None:
    class Wider(AutoNormal):
        def _get_loc_and_scale(self, name: str) -> tuple[Tensor, Tensor]:
            loc, scale = super()._get_loc_and_scale(name)
            return loc, 2 * scale

    class Shifted(AutoNormal):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Named(AutoNormal):
        pass

    kinds = (AutoNormal, Named, Wider, Shifted)
    assert [draws_by_locs_and_scales(kind(nested)) for kind in kinds] == [True, True, False, False]


def test_initial_values_by_default_are_marked_as_pyros_own() -> None:
    site = poutine.trace(model).get_trace().nodes["w"]
    pyros = init_to_median(site)
    mine = by_default(torch.zeros(()))
    assert vars(mine) == vars(pyros) != {}


def test_an_mcmc_knows_whether_it_has_run() -> None:
    mcmc = MCMC(HMC(model, num_steps=1), num_samples=1, warmup_steps=0, disable_progbar=True)
    assert not has_run(mcmc)
    mcmc.run()
    assert has_run(mcmc)


def test_parameters_of_a_guide_carry_its_name() -> None:
    names = []
    for contents in (torch.zeros(2), torch.ones(2), torch.ones(2)):
        pyro.clear_param_store()
        guide = AutoNormal(model)
        name_apart(guide, [contents])
        guide()
        names.append(sorted(pyro.get_param_store()))
    assert len(names[0]) == 2 and set(names[0]).isdisjoint(names[1]) and names[1] == names[2]
