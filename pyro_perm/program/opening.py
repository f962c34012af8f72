"""From what users call a model to a program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.nn import PyroModule
from torch import nn

from pyro_perm.program.call import Call
from pyro_perm.program.inputs import Inputs
from pyro_perm.program.isolation import isolation, without_autoguide_handlers
from pyro_perm.program.program import Program
from pyro_perm.program.pyro_model import PyroModel
from pyro_perm.program.torch_module import TorchModule


@contextmanager
def open_program(model: Call) -> Iterator[Program]:
    """A model and its arguments as a program, which leaves no trace while it is open.

    A plain ``torch.nn.Module`` that samples nothing is a network, all else a Pyro model.
    """
    inputs = Inputs(model.args, model.kwargs)
    whole = without_autoguide_handlers(model.program)
    with isolation(whole) as writes:
        with writes:
            program = PyroModel.first_run(whole, inputs, visible=model.program)
        if isinstance(whole, nn.Module) and _is_network(whole, program):
            yield TorchModule(whole, inputs)
        else:
            yield program


def _is_network(module: nn.Module, program: PyroModel) -> bool:
    return program.samples_nothing and not isinstance(module, PyroModule)
