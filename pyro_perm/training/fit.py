"""Train a guide in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Adam

from pyro_perm.program.batches import Arguments
from pyro_perm.training.annealed_kl import AnnealedKL, Schedule
from pyro_perm.training.batches import arguments_of_batch, as_batches, num_data_of, sizes_of
from pyro_perm.training.choice import choose_elbo
from pyro_perm.training.history import History
from pyro_perm.training.minibatch_scale import warn_if_unscaled
from pyro_perm.training.observations import watch_for_observations
from pyro_perm.training.parameters import TrainedTensors
from pyro_perm.training.processes import Parallel, Processes
from pyro_perm.training.run import Callback, Plan, Run
from pyro_perm.training.steps import MakeOptimizer, MakeScheduler, PyroSteps, Steps, TorchSteps
from pyro_perm.training.wrapped_elbo import WrappedELBO

Program = Callable[..., Any]


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    elbo: ELBO | None = None,
    kl_weight: Schedule | None = None,
    optimizer: MakeOptimizer | PyroOptim | None = None,
    learning_rate: float = 0.01,
    scheduler: MakeScheduler | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    parallel: Parallel | None = None,
    progress: bool = True,
) -> History:
    r"""Train a guide on minibatches, for those who want no loop of their own.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model(x, y=None):
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([4]).to_event(1))
    ...     with pyro.plate("data", 100, subsample=x):
    ...         pyro.sample("y", pyro.distributions.Normal(w.tanh().sum() * x, 0.1), obs=y)
    >>> x = torch.linspace(-1, 1, 100)
    >>> guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    >>> history = pp.fit(model, guide, (x, x), epochs=3, batch_size=20, progress=False)
    >>> history.step, history.stopped
    (15, 'finished')

    With scores, as of ``validate=lambda: held_out_log_likelihood(...)``, the parameters of the best
    one are kept; ``patience=5`` ends the run after five validations without a better one. Ctrl-C
    ends it too, and keeps the best parameters so far. With ``checkpoint="run.pt"``, a run that was
    cut off goes on where it was when the same call is made again, step by step as if nothing had
    happened.

    :param model: the model. It counts a minibatch for all data, by
        ``pyro.plate("data", num_data, subsample=x)``.
    :param guide: any guide; an ``AutoNormal``, by itself or symmetrized, is the fastest. All are
        trained under ``pyro.settings.set(module_local_params=True)`` too, where ``SVI.step`` fails
        at some.
    :param data: a tensor or a tuple of tensors, the arguments of the model, with an entry for each
        observation; or a loader whose batches are arguments, such as a
        :class:`~torch.utils.data.DataLoader`. A model that observes nothing of it is warned about.
    :param epochs: how often all data are seen; give either this or ``steps``.
    :param steps: how many gradient steps are taken.
    :param batch_size: of minibatches of tensors, shuffled each epoch; None takes all at once.
    :param elbo: the loss; by default that of the guide, without traces where that serves
        (:class:`FunctionalSymmetrized_ELBO`, :class:`FunctionalMeanField_ELBO`).
    :param kl_weight: a warm-up, such as ``linear_warm_up(1000)``; see :class:`AnnealedKL`.
    :param optimizer: makes an optimizer of PyTorch of parameters, such as
        ``functools.partial(torch.optim.AdamW, lr=0.01)``; or one of :mod:`pyro.optim`.
        By default Adam.
    :param learning_rate: of the default optimizer.
    :param scheduler: makes a schedule of an optimizer of PyTorch, such as
        ``functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=5000)``; it steps
        after each step.
    :param validate: the score of the guide as it is, larger being better; NaN is never the best,
        and a run without any other score ends with a warning. What it draws leaves the random
        numbers of training as they are.
    :param validate_every: steps from one validation to the next; None validates after each epoch,
        which a run of ``steps`` that ends within an epoch has one less of.
    :param patience: validations in a row without a better score that end the run.
    :param callbacks: are called with the :class:`History` after each step; the run ends where one
        returns True.
    :param checkpoint: a file that the run is saved to, and resumed from where it exists. The call
        that resumes it may have more steps or epochs, and other callbacks, validation and patience;
        other settings of the optimizer, another loss, batch size or number of rows are refused. The
        same numbers of rows are taken for the same data.
    :param checkpoint_every: steps from one checkpoint to the next; the end is saved too.
    :param parallel: where several processes share the run, each with rows of its own, what makes
        the module that averages their gradients: ``DistributedDataParallel``, or Lightning Fabric's
        ``fabric.setup_module``. ``data`` is then a loader whose sampler is a
        :class:`~torch.utils.data.DistributedSampler`, and every process starts from the same seed.
        The first process writes the checkpoint, which all resume from, and its scores count.
    :param progress: whether to show a bar with the ELBO, averaged over the last steps.
    :returns: losses, learning rates and scores, and why the run ended; see
        ``pyro_perm.figures.plot_history``.
    :raises ValueError: if arguments contradict each other, or the checkpoint is of another run, or
        beyond the end of this one; says what differs.
    :raises TypeError: if one of them is of another kind, or model and guide change places.
    :raises FloatingPointError: if the loss is not finite.
    """
    _require_consistent(epochs, steps, validate, validate_every, patience, checkpoint_every)
    _require_kinds(model, guide, elbo)
    batches = as_batches(data, batch_size)
    processes = Processes() if parallel is None else Processes.of(batches)
    first = _first_call(batches)
    warn_if_unscaled(model, first, num_data_of(batches))
    elbo = elbo or choose_elbo(model, guide, first)
    if kl_weight is not None:
        elbo = AnnealedKL(elbo, kl_weight)
    with watch_for_observations():
        taken = _steps(elbo, model, guide, optimizer, learning_rate, scheduler, parallel, first)
    plan = Plan(
        epochs=epochs,
        steps=steps,
        validate=validate,
        validate_every=validate_every,
        patience=patience,
        callbacks=callbacks,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_every=checkpoint_every,
        processes=processes,
        progress=progress and processes.leads,
    )
    if checkpoint is not None and isinstance(taken, PyroSteps):
        taken.require_names()
    extras = {"elbo": elbo} if isinstance(elbo, WrappedELBO) else {}
    settings = {**taken.settings, "loss": type(elbo).__name__, **sizes_of(batches)}
    run = Run(plan, batches, taken, TrainedTensors(model, guide), extras, settings)
    run.resume()
    return run()


def _first_call(batches: Any) -> Arguments:
    """What the model is called with for a first batch.

    :raises ValueError: if there is none.
    """
    for batch in batches:
        return arguments_of_batch(batch, 1)
    raise ValueError("the loader gave no batch")


def _steps(
    elbo: ELBO,
    model: Program,
    guide: Program,
    optimizer: MakeOptimizer | PyroOptim | None,
    learning_rate: float,
    scheduler: MakeScheduler | None,
    parallel: Parallel | None,
    call: Arguments,
) -> Steps:
    if isinstance(optimizer, PyroOptim):
        if parallel is not None:
            raise ValueError(
                "parallel= averages gradients before an optimizer of PyTorch steps, and those of "
                "pyro.optim take them as they are: give one of torch.optim as optimizer="
            )
        if scheduler is not None:
            raise ValueError(
                "scheduler= is for optimizers of PyTorch: give one of Pyro's with a schedule, such "
                "as pyro.optim.ExponentialLR, as optimizer="
            )
        return PyroSteps(elbo, model, guide, optimizer, call)
    if optimizer is None:
        optimizer = partial(_adam, learning_rate)
    elif not callable(optimizer):
        raise TypeError(
            "optimizer must make an optimizer of parameters, such as functools.partial("
            "torch.optim.AdamW, lr=0.01), since the guide's are made at its first call, or be one "
            f"of pyro.optim, but is a {type(optimizer).__name__}"
        )
    return TorchSteps(elbo, model, guide, optimizer, scheduler, parallel, call)


def _adam(learning_rate: float, parameters: Iterable[Tensor]) -> Adam:
    """Adam in one kernel for all parameters, where there is one."""
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return Adam(parameters, lr=learning_rate, fused=fused)


def _require_kinds(model: Any, guide: Any, elbo: Any) -> None:
    if isinstance(model, AutoGuide):
        raise TypeError(
            f"the model is a guide, an {type(model).__name__}: give the model first, "
            "fit(model, guide, data)"
        )
    if isinstance(guide, type):
        raise TypeError(
            f"the guide is the class {guide.__name__}: give an instance, {guide.__name__}(model)"
        )
    if isinstance(elbo, type):
        raise TypeError(
            f"elbo is the class {elbo.__name__}: give an instance, elbo={elbo.__name__}()"
        )
    if not isinstance(elbo, ELBO | None):
        raise TypeError(
            "elbo must be an ELBO such as TraceSymmetrized_ELBO(), or None, but is a "
            f"{type(elbo).__name__}"
        )


def _require_consistent(
    epochs: int | None,
    steps: int | None,
    validate: Callable[[], float] | None,
    validate_every: int | None,
    patience: int | None,
    checkpoint_every: int,
) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError("give either epochs= or steps=, so that the run has one end")
    counts = {
        "epochs": epochs,
        "steps": steps,
        "validate_every": validate_every,
        "patience": patience,
        "checkpoint_every": checkpoint_every,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be positive, but is {count}")
    for name in ("validate_every", "patience"):
        if counts[name] is not None and validate is None:
            raise ValueError(f"{name}= needs validate=, which gives the score")
