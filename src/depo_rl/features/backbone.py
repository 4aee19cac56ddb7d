"""Loading Hugging Face encoders, by hub name or local folder, and reading texts for them. Imports
torch.

``tiny-random`` is a small BERT with random weights and a byte tokenizer, built here without a
download, for tests and the demo.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .embedding_cache import Vectors, digest

TINY_RANDOM = "tiny-random"
_TEXTS_PER_FORWARD = 32
_SAMPLE = "The Cat has 1234.5 apples:  \\frac{1}{2} of $x^2$\n\tnaïve 数学 🙂"  # case, digits, spaces, bytes
_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    # 1/sqrt(hidden): at BERT's 0.02 a random network hardly lets the text through to the CLS vector
    "initializer_range": 0.125,
}


@contextmanager
def private_rng(seed: int) -> Iterator[None]:
    """Global-generator draws inside come from ``seed`` and leave no trace outside; modes of the
    caller do not leak in.

    The CPU generator is seeded directly: ``torch.manual_seed`` would also reseed every GPU, which
    fork_rng([]) does not put back. Whatever is built inside is built on the CPU.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        torch.default_generator.manual_seed(seed)
        yield


class TextReader:
    """Prompt texts -> token ids, cut at ``max_length`` tokens. Counts what it read and what it had
    to cut."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
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
            ids[i] = self._tokenizer(texts[i], truncation=True, max_length=self.max_length)[
                "input_ids"
            ]
        self.n_read += len(texts)
        self.n_truncated += len(long)
        return [list(row) for row in ids]


def load_backbone(name: str, seed: int = 0, setting: str = "estimator.backbone") -> tuple[Any, Any]:
    """Tokenizer and model of ``name``, float32, on the CPU; what is random about either comes from
    ``seed``.

    Raises ConfigError, which names ``setting``, if it cannot be loaded.
    """
    with private_rng(seed), _bars_on_a_terminal_only():
        return tiny_random() if name == TINY_RANDOM else _pretrained(name, setting)


@contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    """transformers draws its bar of loaded weights into log files too."""
    from transformers.utils import logging

    hide = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _pretrained(name: str, setting: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        # "auto" would keep a bfloat16 checkpoint in bfloat16, in which small updates vanish
        backbone = AutoModel.from_pretrained(name, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(name), backbone
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # the last: a tokenizer that needs a library of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{setting} = {name!r}: cannot be loaded ({reason}); give a Hugging Face encoder's hub name, a "
            f"local folder that holds its weights and tokenizer, or {TINY_RANDOM!r}"
        ) from error


def own_pooling(name: str, setting: str = "estimator.pooling") -> str | None:
    """ "cls" or "mean", as ``1_Pooling/config.json`` beside the weights says
    (sentence-transformers); None without it.

    Raises ConfigError, which names ``setting``, if the file asks for a pooling that is not offered
    or cannot be read.
    """
    path = _beside(name, "1_Pooling/config.json")
    if path is None:
        return None
    try:
        told = json.loads(path.read_bytes())
        known = {
            "cls": told.get("pooling_mode_cls_token"),
            "mean": told.get("pooling_mode_mean_tokens"),
        }
        modes = (
            [told["pooling_mode"]]
            if "pooling_mode" in told
            else [mode for mode, on in known.items() if on]
        )
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{setting} = 'auto': {path}: cannot be read ({error}); set it to cls or mean"
        ) from None
    if len(modes) != 1 or modes[0] not in known:
        raise ConfigError(
            f"{setting} = 'auto': {path} asks for another pooling than one of cls, mean; set it to one"
        )
    return str(modes[0])


def _beside(name: str, file: str) -> Path | None:
    """The path of one of a backbone's files, in its folder or on the hub; None if it has none or
    cannot be asked."""
    if name == TINY_RANDOM:
        return None
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        # a path; a mark that there is none; or None, not known
        kept = try_to_load_from_cache(name, file)
        return (
            Path(hf_hub_download(name, file))
            if kept is None
            else Path(kept)
            if isinstance(kept, str)
            else None
        )
    except (
        EntryNotFoundError,
        HfHubHTTPError,
        OSError,
        ValueError,
    ):  # no such file, no such model, no network: all of them are
        return None


def text_reader(tokenizer: Any, backbone: Any, max_length: int) -> TextReader:
    """Reads at most ``max_length`` tokens, fewer if ``backbone`` has positions for fewer."""
    return TextReader(tokenizer, min(max_length, tokenizer.model_max_length, _positions(backbone)))


def _positions(backbone: Any) -> int:
    """Longest text in tokens that the backbone has positions for."""
    limit = int(getattr(backbone.config, "max_position_embeddings", 2**31))
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    # the RoBERTa family counts positions from padding_idx + 1
    padding = getattr(table, "padding_idx", None)
    return limit if padding is None else limit - padding - 1


def tiny_random() -> tuple[Any, Any]:
    """A byte tokenizer (no text is unknown to it) and a two-layer BERT of width 64, from the
    current generator."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    bytes_tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    bytes_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
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
    """What a checkpoint calls its backbone: the hub name, or a local folder's last part, so that
    folders may move."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def micro_batches(ids: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Rows of at most ``size`` texts at a time, texts of like length together so that little is
    padded."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def usable_device(name: str, setting: str = "estimator.device") -> torch.device:
    """Raises ConfigError, which names ``setting``, if there is no such device here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{setting} = {name!r}: cannot be used here ({reason}); take 'cpu'"
        ) from error
    return device


def padded(ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Inputs of a forward, each (P, T): token ids of P texts, padded on the right, and the mask of
    what is text."""
    longest = max(len(row) for row in ids)
    rows = [list(row) + [pad_id] * (longest - len(row)) for row in ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    return {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


class FrozenEncoder:
    """Texts -> masked means of the last hidden states. name: the encoder in words. digest: of all
    that makes its numbers: weights, configuration, vocabulary. width: D. max_length: tokens read,
    no more than it has positions for.

    setting: what an error names. Raises ConfigError if the encoder or the device cannot be had.
    """

    def __init__(self, backbone: str, max_length: int, device: str, setting: str) -> None:
        self._setting, self._device = (
            f"{setting}.backbone = {backbone!r}",
            usable_device(device, f"{setting}.device"),
        )
        tokenizer, model = load_backbone(backbone, setting=f"{setting}.backbone")
        model = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
        self._reader = text_reader(tokenizer, model, max_length)
        self.max_length, self.width = self._reader.max_length, int(model.config.hidden_size)
        self.digest = _content(tokenizer, model)
        self.name = (
            f"{backbone_identity(backbone)} ({self.digest.hex()[:12]}), {self.max_length} tokens"
        )
        self._model = model.eval().to(self._device)

    def embed(
        self, texts: Sequence[str], advance: Callable[[int], None] = lambda n: None
    ) -> Vectors:
        """Shape (P, D), float32; ``advance(n)`` after each n texts. Raises ConfigError if a number
        is not finite."""
        vectors_PD = np.zeros((len(texts), self.width), np.float32)
        pad_id = self._reader.pad_id
        # some tokenizers make nothing of an empty text
        ids = [row or [pad_id] for row in self._reader.read(texts)]
        # the caller's modes (a training loop under autocast, say) must not leak in
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            for rows in micro_batches(ids, _TEXTS_PER_FORWARD):
                given = padded([ids[i] for i in rows], pad_id, self._device)
                hidden = self._model(**given).last_hidden_state.float()
                mask = given["attention_mask"][:, :, None]
                vectors_PD[rows] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
                advance(len(rows))
        if broken := int((~np.isfinite(vectors_PD).all(axis=1)).sum()):
            raise ConfigError(
                f"{self._setting}: gives {broken} of {len(texts)} texts NaN or infinity; take another"
            )
        return vectors_PD


def _content(tokenizer: Any, model: Any) -> bytes:
    """Hash of weights, configuration and vocabulary, and of how a sample is read; not of names,
    paths or versions."""
    told = {
        name: value
        for name, value in model.config.to_diff_dict().items()
        if not name.startswith("_")
        and name not in ("transformers_version", "dtype", "torch_dtype", "architectures")
    }
    reading = json.dumps(
        [told, tokenizer.get_vocab(), tokenizer(_SAMPLE)["input_ids"]], sort_keys=True, default=str
    )
    weights = sorted(model.state_dict().items())
    # a pooler, which nothing reads, is random where the encoder came without one
    used = (
        digest(name.encode(), _bytes(w)) for name, w in weights if not name.startswith("pooler.")
    )
    return digest(reading.encode(), *used)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
