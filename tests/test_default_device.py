"""No tensor is made on the default device, which need not be where a guide's parameters are.

No accelerator is needed for that: that a tensor has a device is read off the source, and seen where
the package runs with `meta` as the default device of its own calls, whose tensors hold no numbers.
"""

import ast
import sys
from pathlib import Path

import pyro
import pytest
import torch
from contracts.estimator import EXAMPLES
from densities import draw
from problems import one_hidden_layer, one_signed_layer_of_two, two_hidden_layers, with_scales
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.overrides import TorchFunctionMode

import pyro_perm as pp

PACKAGE = Path(pp.__file__).parent
MAKERS = [
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
]
SPELLED = {f"torch.{name}" for name in MAKERS}


def without_device(path):
    """Where a file makes a tensor without saying on which device."""
    for node in ast.walk(ast.parse(path.read_text())):
        makes = isinstance(node, ast.Call) and ast.unparse(node.func) in SPELLED
        if makes and "device" not in {keyword.arg for keyword in node.keywords}:
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"


def test_the_source_names_a_device_for_every_tensor():
    sources = [path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts]
    assert len(sources) > 200
    assert [found for path in sources for found in without_device(path)] == []


PASSING_ON = ("__torch_function__", "__torch_dispatch__")


class ForeignDefault(TorchFunctionMode):
    """Makes what the package makes without a device a tensor of `meta`, and nobody else's."""

    made = tuple(getattr(torch, name) for name in (*MAKERS, "as_tensor"))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (
            func in self.made
            and kwargs.get("device") is None
            and not isinstance(args[0], torch.Tensor)
        ):
            code = sys._getframe(1).f_code
            # Modes of the package pass on what a model makes.
            if Path(code.co_filename).is_relative_to(PACKAGE) and code.co_name not in PASSING_ON:
                kwargs["device"] = "meta"
        return func(*args, **kwargs)


def test_a_tensor_of_the_default_device_is_noticed():
    made = compile("torch.zeros(2) + there", str(PACKAGE / "guide.py"), "eval")
    with ForeignDefault(), pytest.raises(RuntimeError, match="device"):
        eval(made, {"torch": torch, "there": torch.ones(2)})


PROBLEMS = {
    "permutations": one_hidden_layer(4),
    "coupled permutations": two_hidden_layers(4, 12),
    "signs": one_signed_layer_of_two(),
    "scales": with_scales(one_hidden_layer(3, torch.relu)),
}
LOSSES = [Trace_ELBO, pp.TraceSymmetrized_ELBO, pp.FunctionalSymmetrized_ELBO]


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]


@pytest.mark.parametrize("loss", LOSSES)
def test_guides_train(problem, loss):
    def losses():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(problem.model, problem.guide(), Adam({"lr": 0.01}), loss())
        return [svi.step(*problem.args) for _ in range(2)]

    expected = losses()
    with ForeignDefault():
        assert losses() == expected


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_estimators_serve(problem, example):
    estimator = example.estimator
    density = draw(problem, num_particles=2)[2]

    def found():
        pyro.set_rng_seed(0)
        try:
            bounds = estimator.bounds(density)
        except ValueError as refusal:
            return str(refusal)
        return [None if side is None else side.tolist() for side in bounds]

    expected = found()
    with ForeignDefault():
        assert found() == expected


def test_what_comes_after_training(problem):
    model, args, guide = problem.model, problem.args, problem.guide()
    guide(*args)
    options = {"num_samples": 4, "progress": False}

    def results():
        elbo = pp.symmetrized_elbo(model, guide, *args, **options)
        draws = guide.sample_posterior(4, *args)
        prediction = pp.predict(model, guide, *args, **options)
        history = pp.fit(model, guide, args, steps=2, progress=False)
        pp.find_symmetry(model, *args)
        return (
            elbo.lower,
            elbo.upper,
            draws.log_q.tolist(),
            prediction.mean.tolist(),
            history.losses,
        )

    pyro.set_rng_seed(0)
    kept = [parameter.detach().clone() for parameter in guide.parameters()]
    expected = results()
    pyro.set_rng_seed(0)
    with torch.no_grad():
        for parameter, value in zip(guide.parameters(), kept, strict=True):
            parameter.copy_(value)
    with ForeignDefault():
        assert results() == expected


def test_draws_are_exported_and_aligned(problem):
    model, args, guide = problem.model, problem.args, problem.guide()
    guide(*args)
    values = guide.sample_posterior(4, *args).values
    with ForeignDefault():
        exported = pp.to_arviz(model, guide, *args, num_samples=4, progress=False)
        aligned = pp.align(values, guide.symmetry)
        information = pp.mutual_information(guide, *args, num_samples=4, progress=False)
    assert len(exported["posterior"].data_vars) >= len(guide.symmetry.sites)
    assert {value.device.type for value in aligned.samples.values()} == {"cpu"}
    assert information.lower <= information.upper + 1e-6
