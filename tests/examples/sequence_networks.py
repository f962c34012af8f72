"""Attention, recurrence, embeddings, tied weights and experts, each with its list of axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from examples.bayesian import example, normal, observe, regression
from torch import Tensor, nn


class Encoder(nn.Module):
    def __init__(self, position: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 8)
        self.enc = nn.TransformerEncoderLayer(8, 2, 6, 0.0, batch_first=True, **options)
        self.out = nn.Linear(8, 1)
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        return self.out(self.enc(h if self.position is None else h + self.position).mean(1))


_HEADS = (
    "enc.self_attn.in_proj_weight[-2:o3,i4] enc.self_attn.in_proj_bias[-1:o3,i4] "
    "enc.self_attn.out_proj.weight[-1:i4]",
    "enc.self_attn.in_proj_weight[-2:o6] enc.self_attn.in_proj_bias[-1:o6] "
    "enc.self_attn.out_proj.weight[-1:o2]",
    "enc.linear1.weight[-2] enc.linear1.bias[-1] enc.linear2.weight[-1]",
)
_STREAM = (
    "inp.weight[-2] inp.bias[-1] enc.self_attn.in_proj_weight[-1] "
    "enc.self_attn.out_proj.weight[-2] enc.self_attn.out_proj.bias[-1] enc.norm1.weight[-1] "
    "enc.norm1.bias[-1] enc.linear1.weight[-1] enc.linear2.weight[-2] enc.linear2.bias[-1] "
    "enc.norm2.weight[-1] enc.norm2.bias[-1] out.weight[-1]"
)


@example(_STREAM, *_HEADS)
def transformer() -> tuple[Any, ...]:
    return regression(Encoder(), torch.randn(2, 4, 3))


@example(_STREAM, *_HEADS)
def transformer_norm_first() -> tuple[Any, ...]:
    return regression(Encoder(norm_first=True), torch.randn(2, 4, 3))


@example(*_HEADS)
def transformer_coded_positions() -> tuple[Any, ...]:
    return regression(Encoder(position=torch.arange(8.0)), torch.randn(2, 4, 3))


@example(
    "q[-1:i2] k[-1:i2] v[-1:i3] o[-2:i3]",
    "q[-1:o2] k[-1:o2]",
    "v[-1:o2] o[-2:o2]",
)
def attention_by_hand() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        q, k = (
            (x @ normal(name, 3, 4)).unflatten(-1, (2, 2)).transpose(1, 2) for name in ("q", "k")
        )
        v = (x @ normal("v", 3, 6)).unflatten(-1, (2, 3)).transpose(1, 2)
        h = (q @ k.mT / 2).softmax(-1) @ v
        observe(h.transpose(1, 2).flatten(-2) @ normal("o", 6, 2), y)

    return model, torch.randn(2, 5, 3), torch.randn(2, 5, 2)


def _recurrent(cell: type[nn.RNNBase], **options: Any) -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = cell(2, 3, batch_first=True, **options)
            self.out = nn.Linear(6 if options else 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    return regression(Net(), torch.randn(2, 4, 2))


def _gates(outer: str, layer: str = "l0") -> str:
    return (
        f"rnn.weight_ih_{layer}[-2{outer}] rnn.weight_hh_{layer}[-2{outer}] "
        f"rnn.weight_hh_{layer}[-1] rnn.bias_ih_{layer}[-1{outer}] rnn.bias_hh_{layer}[-1{outer}]"
    )


@example(f"{_gates('')} out.weight[-1]")
def rnn() -> tuple[Any, ...]:
    return _recurrent(nn.RNN)


@example(f"{_gates(':o4')} out.weight[-1]")
def lstm() -> tuple[Any, ...]:
    return _recurrent(nn.LSTM)


@example(f"{_gates(':o3')} out.weight[-1]")
def gru() -> tuple[Any, ...]:
    return _recurrent(nn.GRU)


@example(
    f"{_gates(':o4')} rnn.weight_ih_l1[-1:0..2] rnn.weight_ih_l1_reverse[-1:0..2]",
    f"{_gates(':o4', 'l0_reverse')} rnn.weight_ih_l1[-1:3..5] rnn.weight_ih_l1_reverse[-1:3..5]",
    f"{_gates(':o4', 'l1')} out.weight[-1:0..2]",
    f"{_gates(':o4', 'l1_reverse')} out.weight[-1:3..5]",
)
def lstm_bidirectional_stacked() -> tuple[Any, ...]:
    return _recurrent(nn.LSTM, num_layers=2, bidirectional=True)


@example("e.weight[-1] out.weight[-1]")
def embedding() -> tuple[Any, ...]:
    net = nn.Sequential()
    net.e, net.out = nn.Embedding(7, 4), nn.Linear(4, 2)
    return regression(net, torch.randint(0, 7, (5,)))


@example("weight[-2] bias[-1]")
def tied_autoencoder() -> tuple[Any, ...]:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(x)) @ self.weight

    return regression(Net(5, 3), torch.randn(3, 5))


@example("e.weight[-1] h.weight[-1]", "h.weight[-2] h.bias[-1] o.weight[-1]")
def tied_embedding() -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.h, self.o = nn.Embedding(7, 4), nn.Linear(4, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.h(self.e(x)).relu()) + self.e.weight.sum()

    return regression(Net(), torch.randint(0, 7, (5,)))


@example(
    "gate.weight[-2] gate.bias[-1] w1[-3] b1[-2] w2[-3]",
    "w1[-2] b1[-1] w2[-1]",
)
def mixture_of_experts() -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 4)
            self.w1, self.b1 = nn.Parameter(torch.randn(4, 5, 3)), nn.Parameter(torch.randn(4, 5))
            self.w2 = nn.Parameter(torch.randn(4, 2, 5))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(torch.einsum("eho,no->neh", self.w1, x) + self.b1)
            y = torch.einsum("neh,eoh->neo", h, self.w2)
            return (F.softmax(self.gate(x), -1)[..., None] * y).sum(1)

    return regression(Net(), torch.randn(3, 3))
