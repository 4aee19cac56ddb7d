"""Tiny models, tokenizers and data sets for the TRL engine's tests, and one way to train on
them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import warnings
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from depo_rl.engines.trl import DEPOConfig, DEPOTrainer

torch.set_num_threads(1)

THIRD_PARTY = [  # deprecations inside the libraries that no setting of ours avoids
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",  # TRL's own default sets it
]


def since(release: str) -> pytest.MarkDecorator:
    """Skips a test of what TRL has since that release."""
    older = Version(trl.__version__) < Version(release)
    return pytest.mark.skipif(older, reason=f"TRL has it since {release}")


CHARACTERS = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789+-*= ?", "u", "a", ":", "\n"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]  # transformers 4 adds token types
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, padding_side="left", model_input_names=inputs, **names
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def policy(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(CHARACTERS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def saved_policy(folder) -> str:
    policy().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def rows(n: int) -> list[dict]:
    """``n`` distinct sums, of two sources."""
    made = []
    for i in range(n):
        a, b = i % 10, i // 10
        made.append(
            {"prompt": f"{a}+{b}=", "answer": str(a + b), "source": "even" if i % 2 == 0 else "odd"}
        )
    return made


def dataset(n: int = 32) -> Dataset:
    return Dataset.from_list(rows(n))


def text(completion) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def digit_reward(completions, answer, **_):
    """1 if the completion holds the answer's last digit: an untrained policy gets it right now and
    then."""
    return [float(a[-1] in text(c)) for c, a in zip(completions, answer, strict=True)]


def length_reward(completions, **_):
    return [-0.1 * len(text(c)) for c in completions]


# Its name until transformers 5.
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(DEPOConfig, "activation_checkpointing")
    else "gradient_checkpointing"
)

FUSED = {"type": "fused", "n_buckets": 2**10, "n_random": 16}  # small, and as quick as the rest

BASE = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "bf16": False,
    CHECKPOINTING: False,
    "report_to": [],
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 3,
    "disable_tqdm": True,
    "use_cpu": True,
}


def config(folder, cls=DEPOConfig, **overrides):
    return cls(output_dir=str(folder), **{**BASE, **overrides})


def trainer(
    folder,
    *,
    cls=DEPOTrainer,
    config_cls=DEPOConfig,
    rewards=digit_reward,
    data=None,
    extra=None,
    **overrides,
):
    """A trainer of a fresh tiny policy; ``overrides``: settings of the config; ``extra``: arguments
    of the trainer."""
    arguments = {"model": policy(), "processing_class": tokenizer()} | (extra or {})
    args = config(folder, config_cls, **overrides)
    return cls(
        reward_funcs=rewards,
        args=args,
        train_dataset=dataset() if data is None else data,
        **arguments,
    )


def run(folder, resume=None, **kwargs):
    made = trainer(folder, **kwargs)
    made.train(resume_from_checkpoint=resume)
    return made


def losses(made) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def outcome_log(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "outcomes.jsonl").read_text().splitlines()]


def weights(made) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}


def differences(left, right, path="") -> list[str]:
    """Paths at which two nested states differ, bit for bit; NaN equals NaN."""
    if isinstance(left, dict) and isinstance(right, dict):
        found = [f"{path}/{key}: only on one side" for key in left.keys() ^ right.keys()]
        return found + [
            d
            for key in left.keys() & right.keys()
            for d in differences(left[key], right[key], f"{path}/{key}")
        ]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            return [f"{path}: {len(left)} and {len(right)} items"]
        return [
            d
            for i, (a, b) in enumerate(zip(left, right, strict=True))
            for d in differences(a, b, f"{path}[{i}]")
        ]
    left, right = (v.numpy() if isinstance(v, torch.Tensor) else v for v in (left, right))
    if hasattr(left, "tobytes") and hasattr(right, "tobytes"):
        return (
            []
            if left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
            else [path]
        )
    return (
        []
        if left == right or (left != left and right != right)
        else [f"{path}: {left!r} and {right!r}"]
    )


def everything(made) -> dict:
    """All that an exact resume must give back, but the logged seconds."""
    curriculum = made.curriculum.state_dict() if made.curriculum is not None else {}
    return {
        "losses": losses(made),
        "weights": weights(made),
        "optimizer": made.optimizer.state_dict()["state"],
        "curriculum": curriculum,
        "step": made._step,
        "tokens": made.state.num_input_tokens_seen,
        "completion_tokens": made.completion_tokens_generated,
    }


def caught(function, *args, **kwargs):
    """(result, messages of the UserWarnings) of a call; deprecations of the libraries are
    dropped."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = function(*args, **kwargs)
    return result, [str(w.message) for w in seen if w.category is UserWarning]
