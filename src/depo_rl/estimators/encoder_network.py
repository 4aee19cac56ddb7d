"""Text -> tokens -> CLS vector -> trunk -> two logits: the network of the paper's Difficulty Estimator.

arXiv 2602.06375; sizes and initialisation are the released code's. The backbone is any Hugging Face encoder with a CLS
token, by hub name or local folder; ``tiny-random`` is a small BERT with random weights and a byte tokenizer, built here
without a download, for tests and the demo. ``D`` is the backbone's hidden size, ``W`` the trunk's width.

The backbone's own dropout stays off, in training too; only the trunk drops out. So a CLS vector is a function of text
and weights alone, nothing draws from a global generator, and splitting a batch into micro-batches is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

TINY_RANDOM = "tiny-random"
_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    # 1/sqrt(hidden): at BERT's 0.02 a random network hardly lets the text through to the CLS vector
    "initializer_range": 0.125,
}
_HEAD_STD = 1e-3


@contextmanager
def private_rng(seed: int) -> Iterator[None]:
    """Global-generator draws inside come from ``seed`` and leave no trace outside; modes of the caller do not leak in.

    The CPU generator is seeded directly: ``torch.manual_seed`` would also reseed every GPU, which fork_rng([]) does
    not put back. Whatever is built inside is built on the CPU.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        torch.default_generator.manual_seed(seed)
        yield


class TextReader:
    """Prompt texts -> token ids, cut at ``max_length`` tokens. Counts what it read and what it had to cut."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self.max_length = tokenizer, max_length
        self.pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.n_read = self.n_truncated = 0

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most ``max_length`` each."""
        if not texts:
            return []
        # tokenizers refuse lone surrogates, which JSON data sets do hold
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        long = [i for i, row in enumerate(ids) if len(row) > self.max_length]
        for i in long:  # again with truncation, which keeps the closing special token
            ids[i] = self._tokenizer(texts[i], truncation=True, max_length=self.max_length)["input_ids"]
        self.n_read += len(texts)
        self.n_truncated += len(long)
        return [list(row) for row in ids]


class PrivateDropout(nn.Module):
    """Inverted dropout that draws from its own CPU generator: masks neither touch nor depend on global state."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self._p, self._generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self._p == 0.0:
            return x
        kept = torch.rand(x.shape, generator=self._generator, device="cpu", dtype=torch.float32) >= self._p
        return x * kept.to(x.device) / (1.0 - self._p)


class ResidualBlock(nn.Module):
    """(P, W) -> (P, W): Linear, LayerNorm, GELU, Dropout, Linear, LayerNorm; GELU of the sum with the input."""

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
    """Backbone, trunk and two heads. ``class_vectors`` then ``logits``; weights are float32 whatever the hub stores."""

    def __init__(self, backbone: Any, pad_id: int, width: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.backbone, self._pad_id = backbone, pad_id
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
        self.score_head, self.distill_head = nn.Linear(width // 2, 1), nn.Linear(width // 2, 1)
        for head in (self.score_head, self.distill_head):
            nn.init.normal_(head.weight, std=_HEAD_STD)
            nn.init.zeros_(head.bias)
        self.float().eval()  # the update alone switches the trunk's dropout on

    def class_vectors(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Hidden state at the CLS token, shape (P, D), float32, of P texts given as token ids; right-padded here."""
        device, longest = self.score_head.weight.device, max(len(row) for row in ids)
        padded = [list(row) + [self._pad_id] * (longest - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        output = self.backbone(
            input_ids=torch.tensor(padded, device=device), attention_mask=torch.tensor(mask, device=device)
        )
        vectors_PD: Tensor = output.last_hidden_state[:, 0].float()
        return vectors_PD

    def logits(self, vectors_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Score and distillation logits, each of shape (P,), float32."""
        trunk_PW = self.trunk(vectors_PD)
        return self.score_head(trunk_PW)[:, 0].float(), self.distill_head(trunk_PW)[:, 0].float()


def build(config: Any, seed: int, generator: torch.Generator) -> tuple[TextReader, EncoderNetwork]:
    """Tokenizer and network for ``config`` (``EncoderSettings``), on the CPU; dropout will draw from ``generator``.

    Raises ConfigError if the backbone cannot be loaded or has no CLS token to read.
    """
    with private_rng(seed):
        tokenizer, backbone = tiny_random() if config.backbone == TINY_RANDOM else _pretrained(config.backbone)
    if tokenizer.cls_token_id is None:
        raise ConfigError(
            f"estimator.backbone = {config.backbone!r}: its tokenizer has no CLS token to predict from; "
            "take an encoder of the BERT family, such as 'distilbert-base-uncased'"
        )
    reader = TextReader(tokenizer, min(config.max_length, tokenizer.model_max_length, _positions(backbone)))
    with private_rng(seed):  # again, so that the trunk does not depend on what the backbone drew
        network = EncoderNetwork(backbone, reader.pad_id, config.width, config.dropout, generator)
    return reader, network


def _pretrained(name: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        # "auto" would keep a bfloat16 checkpoint in bfloat16, in which small updates vanish
        backbone = AutoModel.from_pretrained(name, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(name), backbone
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"estimator.backbone = {name!r}: cannot be loaded ({reason}); give a Hugging Face encoder's hub name, a "
            f"local folder that holds its weights and tokenizer, or {TINY_RANDOM!r}"
        ) from error


def _positions(backbone: Any) -> int:
    """Longest text in tokens that the backbone has positions for."""
    limit = int(getattr(backbone.config, "max_position_embeddings", 2**31))
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # the RoBERTa family counts positions from padding_idx + 1
    return limit if padding is None else limit - padding - 1


def tiny_random() -> tuple[Any, Any]:
    """A byte tokenizer (no text is unknown to it) and a two-layer BERT of width 64, from the current generator."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    bytes_tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    bytes_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=_TINY["max_position_embeddings"],
    )
    config = BertConfig(vocab_size=len(vocab), pad_token_id=vocab["[PAD]"], **_TINY)
    return tokenizer, BertModel(config, add_pooling_layer=False)


def backbone_identity(name: str) -> str:
    """What a checkpoint calls its backbone: the hub name, or a local folder's last part, so that folders may move."""
    return Path(name).resolve().name if Path(name).is_dir() else name
