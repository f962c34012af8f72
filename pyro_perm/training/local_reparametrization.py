"""The local reparametrization trick, as a recipe for any ELBO."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro_perm.functional.local_layers import LocalLayers
from pyro_perm.training.wrapped_elbo import WrappedELBO


class LocalReparametrization(WrappedELBO):
    """Draws the outputs of linear and convolutional layers in place of their weights.

    The expectation is that of the other ELBO, its gradient has less variance, and the
    observations of a batch are independent of each other (Kingma et al. 2015). Served are
    ``torch.nn.functional.linear`` and ``conv1d`` to ``conv3d``, as in the layers of ``torch.nn``,
    whose weights the guide draws from Normals of their own, such as an ``AutoNormal`` or
    ``AutoSymmetrized(AutoNormal(model), permute=False)``. What a model does besides with a weight
    sees a draw of its own.

    >>> import pyro_perm as pp
    >>> elbo = pp.LocalReparametrization(pp.FunctionalSymmetrized_ELBO())

    :param elbo: any ELBO of Pyro's kind that is not compiled.
    :raises TypeError: if it wraps a compiled ELBO.
    :raises ValueError: at a step, if no layer meets a weight of the guide, or one meets it twice.
    """

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """A step whose layers are drawn by their outputs."""
        with LocalLayers() as layers:
            yield
        if not layers.num_drawn:
            raise ValueError(
                "no linear or convolutional layer met a weight that the guide draws: it must draw "
                "them from Normals of their own, without permuting them (permute=False), and the "
                "model call torch.nn.functional.linear, or a layer that does"
            )
