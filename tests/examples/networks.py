"""Feed-forward and convolutional networks, each with its full expected list of axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from examples.bayesian import example, normal, observe, regression
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn


@example(
    "0.weight[-2] 0.bias[-1] 2.weight[-1]",
    "2.weight[-2] 2.bias[-1] 4.weight[-1]",
)
def mlp_sequential() -> tuple[Any, ...]:
    layers = nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)
    return regression(nn.Sequential(*layers), torch.randn(4, 3))


@example("fc1.weight[-2] fc1.bias[-1] fc2.weight[-1]")
def mlp_pyro_sample() -> tuple[Any, ...]:
    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = PyroModule[nn.Linear](3, 6)
            self.fc1.weight = PyroSample(dist.Normal(0.0, 1.0).expand([6, 3]).to_event(2))
            self.fc1.bias = PyroSample(lambda self: dist.Normal(0.0, 1.0).expand([6]).to_event(1))
            self.fc2 = PyroModule[nn.Linear](6, 1)
            self.fc2.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 6]).to_event(2))

        def forward(self, x: Tensor, y: Tensor) -> None:
            observe(self.fc2(torch.tanh(self.fc1(x))), y)

    return Net(), torch.randn(4, 3), torch.randn(4, 1)


@example("w1[-1] b1[-1] w2[-2]", "w2[-1] w3[-1]")
def mlp_functional() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        h = torch.tanh(x @ normal("w1", 3, 5) + normal("b1", 5))
        observe(torch.sin(h @ normal("w2", 5, 4)) @ normal("w3", 4), y)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1] w2[-2]", "w2[-1] w3[-2]")
def mlp_einsum() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        h = torch.einsum("ni,ij->nj", x, normal("w1", 3, 5)).relu()
        h = torch.einsum("nj,jk->kn", h, normal("w2", 5, 4)).relu()
        observe(torch.einsum("kn,ko->no", h, normal("w3", 4, 2)), y)

    return model, torch.randn(6, 3), torch.randn(6, 2)


@example("w1[-2] w2[-2]")
def mlp_in_plates() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("in", 3, dim=-1), pyro.plate("hidden", 5, dim=-2):
            w1 = pyro.sample("w1", dist.Normal(0.0, 1.0))
        with pyro.plate("out", 2, dim=-1), pyro.plate("hidden_too", 5, dim=-2):
            w2 = pyro.sample("w2", dist.Normal(0.0, 1.0))
        observe(torch.tanh(x @ w1.T) @ w2, y)

    return model, torch.randn(6, 3), torch.randn(6, 2)


@example("w1[-3] w2[-3]", "w1[-1] w2[-2]")
def mlp_ensemble() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        h = torch.tanh(torch.matmul(x, normal("w1", 5, 3, 4)))
        observe(torch.bmm(h, normal("w2", 5, 4, 1)).mean(0), y)

    return model, torch.randn(6, 3), torch.randn(6, 1)


@example(
    "0.weight[-4] 0.bias[-1] 3.weight[-3]",
    "3.weight[-4] 3.bias[-1] 7.weight[-1:i9]",
    "7.weight[-2] 7.bias[-1] 9.weight[-1]",
)
def lenet() -> tuple[Any, ...]:
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(4 * 9, 6), nn.ReLU(), nn.Linear(6, 2)),
    )
    return regression(net, torch.randn(2, 1, 18, 18))


class Block(nn.Module):
    """A residual block with in-place operations, as torchvision writes it."""

    def __init__(self, c_in: int, c_out: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, c_out // c_in, 1, bias=False)
        self.n1 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.n2 = norm(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(c_in, c_out, 1, 2, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.n1(self.conv1(x)))
        h = self.n2(self.conv2(h))
        h += x if self.down is None else self.down(x)
        return self.relu(h)


class ResNet(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 1, 1)
        self.b1, self.b2 = Block(4, 4, norm), Block(4, 8, norm)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b2(self.b1(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(h, 1).flatten(1))


_RESNET = (
    "stem.weight[-4] stem.bias[-1] b1.conv1.weight[-3] b1.conv2.weight[-4] b1.n2.weight[-1] "
    "b1.n2.bias[-1] b2.conv1.weight[-3] b2.down.weight[-3]",
    "b1.conv1.weight[-4] b1.n1.weight[-1] b1.n1.bias[-1] b1.conv2.weight[-3]",
    "b2.conv1.weight[-4] b2.n1.weight[-1] b2.n1.bias[-1] b2.conv2.weight[-3]",
    "b2.conv2.weight[-4] b2.n2.weight[-1] b2.n2.bias[-1] b2.down.weight[-4] fc.weight[-1]",
)


@example(*_RESNET)
def resnet_batch_norm() -> tuple[Any, ...]:
    norm = functools.partial(nn.BatchNorm2d, track_running_stats=False)
    return regression(ResNet(norm), torch.randn(2, 1, 6, 6))


@example(*_RESNET)
def resnet_instance_norm() -> tuple[Any, ...]:
    norm = functools.partial(nn.InstanceNorm2d, affine=True)
    return regression(ResNet(norm), torch.randn(2, 1, 6, 6))


@example(*_RESNET)
def resnet_layer_norm() -> tuple[Any, ...]:
    return regression(ResNet(functools.partial(nn.GroupNorm, 1)), torch.randn(2, 1, 6, 6))


@example(
    *(group.replace("]", ":i2]") for group in _RESNET[:2]),
    *(group.replace("]", ":o2]") for group in _RESNET[:2]),
    *(group.replace("]", ":i4]") for group in _RESNET[2:]),
    *(group.replace("]", ":o2]") for group in _RESNET[2:]),
)
def resnet_group_norm() -> tuple[Any, ...]:
    return regression(ResNet(functools.partial(nn.GroupNorm, 2)), torch.randn(2, 1, 6, 6))


@example()
def resnet_batch_norm_eval() -> tuple[Any, ...]:
    model, x, y = regression(ResNet(nn.BatchNorm2d), torch.randn(2, 1, 6, 6))
    return model.eval(), x, y


@example(
    "a.weight[-4] b.weight[-4:0..2] fc.weight[-1:0..2]",
    "b.weight[-4:3..4] fc.weight[-1:3..4]",
)
def zero_padded_shortcut() -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 3, 1, bias=False)
            self.b = nn.Conv2d(1, 5, 1, bias=False)
            self.fc = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.pad(self.a(x), (0, 0, 0, 0, 0, 2)) + self.b(x)
            return self.fc(h.relu().mean((2, 3)))

    return regression(Net(), torch.randn(2, 1, 4, 4))


@example(
    "a.weight[-4:0..1] a.bias[-1:0..1] fc.weight[-1:0,2]",
    "a.weight[-4:2..3] a.bias[-1:2..3] c.weight[-3:0,2]",
    "b.weight[-4:0..1] b.bias[-1:0..1] fc.weight[-1:1,3]",
    "b.weight[-4:2..3] b.bias[-1:2..3] c.weight[-3:1,3]",
    "c.weight[-4] c.bias[-1] fc.weight[-1:4..6]",
)
def channel_shuffle() -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
            self.c, self.fc = nn.Conv2d(4, 3, 1), nn.Linear(7, 1)

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.a(x), self.b(x)], 1).relu()
            passing, taken = joined.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2).chunk(2, 1)
            return self.fc(torch.cat([passing, self.c(taken).relu()], 1).mean((2, 3)))

    return regression(Net(), torch.randn(2, 1, 4, 4))


@example(
    "a.weight[-4] a.bias[-1] b.weight[-3] c.weight[-3:0..2] fc.weight[-1:0..2]",
    "b.weight[-4] b.bias[-1] c.weight[-3:3..4] fc.weight[-1:3..4]",
    "c.weight[-4] c.bias[-1] fc.weight[-1:5..8]",
)
def densenet() -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 2, 3, 1, 1)
            self.c, self.fc = nn.Conv2d(5, 4, 3, 1, 1), nn.Linear(9, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = F.relu(self.a(x))
            b = F.relu(self.b(a))
            c = F.relu(self.c(torch.cat([a, b], 1)))
            return self.fc(torch.cat([a, b, c], 1).mean((2, 3)))

    return regression(Net(), torch.randn(2, 1, 4, 4))


@example(
    "e1.weight[-4] e1.bias[-1] e2.weight[-3] d1.weight[-3:0..2]",
    "e2.weight[-4] e2.bias[-1] up.weight[-4]",
    "up.weight[-3] up.bias[-1] d1.weight[-3:3..5]",
    "d1.weight[-4] d1.bias[-1] out.weight[-3]",
)
def unet() -> tuple[Any, ...]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e1, self.e2 = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 4, 3, 1, 1)
            self.up = nn.ConvTranspose2d(4, 3, 2, 2)
            self.d1, self.out = nn.Conv2d(6, 5, 3, 1, 1), nn.Conv2d(5, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = F.relu(self.e1(x))
            up = self.up(F.relu(self.e2(F.max_pool2d(a, 2))))
            return self.out(F.relu(self.d1(torch.cat([a, up], 1))))

    return regression(Net(), torch.randn(2, 1, 4, 4))


@example(
    "0.weight[-4:i3] 0.bias[-1:i3] 2.weight[-4:i2] 2.bias[-1:i2] 4.weight[-3:i2]",
    "0.weight[-4:o2] 0.bias[-1:o2] 2.weight[-3]",
    "2.weight[-4:o2] 2.bias[-1:o2] 4.weight[-3:o2]",
)
def grouped_convolution() -> tuple[Any, ...]:
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3, 1, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 1, 1)),
    )
    return regression(net, torch.randn(2, 1, 4, 4))


@example(
    "0.weight[-4] 0.bias[-1] 1.weight[-4] 1.bias[-1] 3.weight[-4:i2] 3.bias[-1:i2] 5.weight[-3:i2]",
    "3.weight[-4:o5] 3.bias[-1:o5] 5.weight[-3:o5]",
)
def depthwise_convolution() -> tuple[Any, ...]:
    net = nn.Sequential(
        *(nn.Conv2d(1, 5, 1), nn.Conv2d(5, 5, 3, 1, 1, groups=5), nn.ReLU()),
        *(nn.Conv2d(5, 10, 3, padding=1, groups=5), nn.ReLU(), nn.Conv2d(10, 1, 1)),
    )
    return regression(net, torch.randn(2, 1, 4, 4))
