"""Networks as people write them from torch.nn: a GPT, a ViT, an LSTM tagger, a U-Net."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*heads, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder whose head shares the embedding of the tokens."""

    def __init__(self, vocabulary: int = 50, length: int = 12, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4, causal=True) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(self.tokens(tokens) + places)))


class ViT(nn.Module):
    """Patches, a class token, an encoder of ``nn.TransformerEncoderLayer``, a head."""

    def __init__(self, width: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        return self.head(self.encoder(tokens + self.places)[:, 0])


class Tagger(nn.Module):
    """Embeddings, two bidirectional LSTM layers, a tag for each word."""

    def __init__(self, vocabulary: int = 50, units: int = 24, num_tags: int = 9) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 16)
        self.lstm = nn.LSTM(16, units, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * units, num_tags)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(words))[0])


class Double(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()),
        )


class UNet(nn.Module):
    """Two steps down and up, joined by concatenation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = Double(1, width), Double(width, 2 * width)
        self.bottom, self.pool = Double(2 * width, 4 * width), nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join2, self.join1 = Double(4 * width, 2 * width), Double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(self.pool(first))
        x = self.join2(torch.cat([second, self.up2(self.bottom(self.pool(second)))], 1))
        return self.head(self.join1(torch.cat([first, self.up1(x)], 1)))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "gpt": lambda: (GPT(), torch.randint(50, (2, 12))),
    "vit": lambda: (ViT(), torch.randn(2, 3, 16, 16)),
    "lstm_tagger": lambda: (Tagger(), torch.randint(50, (2, 7))),
    "unet": lambda: (UNet(), torch.randn(2, 1, 16, 16)),
}
