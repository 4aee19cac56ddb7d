"""Text -> tokens -> vector -> trunk -> two logits: the network of the paper's Difficulty Estimator.

arXiv 2602.06375; sizes and initialisation are the released code's. The backbone is any Hugging Face
encoder (``features.backbone``). Its vector of a text is the hidden state at the CLS token, as the
paper has it, or the mean over the tokens, as sentence encoders were trained: their CLS is worse
than random weights' (docs/paper_index.md). ``D`` is the backbone's hidden size, ``W`` the trunk's
width.

The backbone's own dropout stays off, in training too; only the trunk drops out. So a vector is a
function of text and weights alone, nothing draws from a global generator, and splitting a batch
into micro-batches is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...features.backbone import (
    TextReader,
    load_backbone,
    own_pooling,
    padded,
    private_rng,
    text_reader,
)

_HEAD_STD = 1e-3


class PrivateDropout(nn.Module):
    """Inverted dropout that draws from its own CPU generator: masks neither touch nor depend on
    global state."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self._p = p
        self._generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self._p == 0.0:
            return x
        kept = (
            torch.rand(x.shape, generator=self._generator, device="cpu", dtype=torch.float32)
            >= self._p
        )
        return x * kept.to(x.device) / (1.0 - self._p)


class ResidualBlock(nn.Module):
    """(P, W) -> (P, W): Linear, LayerNorm, GELU, Dropout, Linear, LayerNorm; GELU of the sum with
    the input."""

    def __init__(self, width: int, dropout: PrivateDropout) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.GELU(),
            dropout,
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x_PW: Tensor) -> Tensor:
        return nn.functional.gelu(x_PW + self.inner(x_PW))


class EncoderNetwork(nn.Module):
    """Backbone, trunk and two heads: ``vectors`` then ``logits``; weights are float32 whatever the
    hub stores.

    pooling: "cls" or "mean". width, dropout: of the trunk, whose dropout draws from ``generator``.
    """

    def __init__(
        self,
        backbone: Any,
        pad_id: int,
        width: int,
        dropout: float,
        generator: torch.Generator,
        pooling: str = "cls",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pad_id = pad_id
        self.pooling = pooling
        self.trunk = nn.Sequential(
            nn.Linear(int(backbone.config.hidden_size), width),
            nn.LayerNorm(width),
            nn.GELU(),
            ResidualBlock(width, PrivateDropout(dropout, generator)),
            ResidualBlock(width, PrivateDropout(dropout, generator)),
            nn.Linear(width, width // 2),  # 1024 -> 512 in the paper
            nn.LayerNorm(width // 2),
            nn.GELU(),
            PrivateDropout(dropout, generator),
        )
        self.score_head = nn.Linear(width // 2, 1)
        self.distill_head = nn.Linear(width // 2, 1)
        for head in (self.score_head, self.distill_head):
            nn.init.normal_(head.weight, std=_HEAD_STD)
            nn.init.zeros_(head.bias)
        self.float().eval()  # the update alone switches the trunk's dropout on

    def vectors(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Pooled last hidden states, shape (P, D), float32, of P texts given as token ids;
        right-padded here."""
        given = padded(ids, self.pad_id, self.score_head.weight.device)
        hidden_PTD: Tensor = self.backbone(**given).last_hidden_state.float()
        if self.pooling == "cls":
            return hidden_PTD[:, 0]
        mask_PT1 = given["attention_mask"][:, :, None]
        return (hidden_PTD * mask_PT1).sum(1) / mask_PT1.sum(1)

    def logits(self, vectors_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Score and distillation logits, each of shape (P,), float32."""
        trunk_PW = self.trunk(vectors_PD)
        return self.score_head(trunk_PW)[:, 0].float(), self.distill_head(trunk_PW)[:, 0].float()


def build(config: Any, seed: int, generator: torch.Generator) -> tuple[TextReader, EncoderNetwork]:
    """Tokenizer and network for ``config`` (``EncoderSettings``), on the CPU; dropout will draw
    from ``generator``.

    Raises ConfigError if the backbone cannot be loaded or pooled: there must be a CLS token to
    read, or the mean asked.
    """
    tokenizer, backbone = load_backbone(config.backbone, seed)
    pooling = config.pooling if config.pooling != "auto" else own_pooling(config.backbone) or "cls"
    if pooling == "cls" and tokenizer.cls_token_id is None:
        raise ConfigError(
            f"estimator.backbone = {config.backbone!r}: its tokenizer has no CLS token to predict from; set "
            "estimator.pooling to mean, or take an encoder of the BERT family, such as 'distilbert-base-uncased'"
        )
    reader = text_reader(tokenizer, backbone, config.max_length)
    with private_rng(seed):  # again, so that the trunk does not depend on what the backbone drew
        network = EncoderNetwork(
            backbone, reader.pad_id, config.width, config.dropout, generator, pooling
        )
    return reader, network
