"""A small transformer over time series (Vaswani et al., 2017; pre-norm: Xiong et al., 2020).

    window -> normalise -> patches -> embed + position -> blocks.0 -> blocks.1 -> norm -> mean -> head

A patch is some consecutive rows of all channels (Nie et al., 2023, cut theirs per channel). Attention is
written with nn.Linear and scaled_dot_product_attention, so that LoRA finds its projections;
nn.MultiheadAttention reads its weights without running the layers that hold them.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import embedding
from models.backbones.backbone import Backbone, check_kind
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec

WIDTH = 64
HEADS = 4
BLOCKS = 2
TOKENS = 32
"""Most patches per window: the cost of attention, and the size of the features, grow with them."""
SHORTEST = 8
PROJECTIONS = tuple(f"blocks.{i}.{name}" for i in range(BLOCKS) for name in ("qkv", "out", "up", "down"))


class EncoderBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a layer norm and beside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, float32 [batch, count, WIDTH], to tokens of the same shape."""
        batch, count, width = tokens.shape
        split = self.qkv(self.norm1(tokens)).reshape(batch, count, 3, HEADS, width // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        mapped: Tensor = tokens + self.down(functional.gelu(self.up(self.norm2(tokens))))
        return mapped


class TransformerBackbone(Backbone):
    """Adaptable layers are `blocks.I`, their projections `qkv`, `out`, `up`, `down`, and `head`."""

    NAME = "transformer"
    ADAPTER = "lora"
    LAYERS: ClassVar = {"bottleneck": tuple(f"blocks.{i}" for i in range(BLOCKS)), "lora": PROJECTIONS}
    RANKS: ClassVar = {"bottleneck": 16, "lora": 8}
    EMBEDDING = embedding.LAST

    def __init__(self, channels: int, classes: int, length: int) -> None:
        super().__init__(channels, 1)
        self.patch = -(-length // TOKENS)
        self.tokens = length // self.patch
        self.embed = nn.Linear(channels * self.patch, WIDTH)
        self.position = nn.Parameter(torch.randn(self.tokens, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    @classmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "TransformerBackbone":
        """Choose the patches for a schema's windows.

        Raises:
            AdapterError: pictures, or windows too short.
        """
        check_kind(cls, schema, images=False)
        if window.length < SHORTEST:
            raise AdapterError(
                f"backbone {cls.NAME}: window length: expected at least {SHORTEST} rows, got {window.length}",
                "use longer windows or --backbone mlp",
            )
        return cls(len(schema.channels), len(schema.classes), window.length)

    def forward(self, window: Tensor) -> Tensor:
        """Map windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""
        # Rows at the end that fill no patch are left out.
        used = self.normalised(window)[..., : self.tokens * self.patch]
        patches = used.reshape(*used.shape[:-1], self.tokens, self.patch).transpose(1, 2).flatten(2)
        tokens = self.embed(patches) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits
