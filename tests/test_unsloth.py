"""On the trainer that Unsloth writes from TRL's, compiles and puts in its place.

Without a GPU: the model is an ordinary one with Unsloth's two switches, so its kernels, its 4-bit
weights and its vLLM are not run.
"""

import os
import subprocess
import sys
import tempfile

import pytest

from limits import HANG_S

if "unsloth" not in sys.modules:  # before anything reads them
    os.environ.setdefault("UNSLOTH_ALLOW_CPU", "1")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth_compiled"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest.importorskip("unsloth", exc_type=ImportError)

from unsloth.models.rl import _patch_trl_rl_trainers

_patch_trl_rl_trainers("grpo_trainer")  # what `import unsloth` does where there is a GPU

from trl import GRPOConfig, GRPOTrainer

import trl_toys as toys
from depo_rl.engines.trl import DEPOTrainer
from depo_rl.engines.trl.config import as_depo_config
from depo_rl.errors import EngineError

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # deprecations inside Unsloth and what it asks for

WARM = {"warmup_steps": 1, "candidate_factor": 3}
SAVE = {"save_strategy": "steps", "save_steps": 2}


def policy(lora=False):
    made = toys.policy()
    if lora:
        import peft

        made = peft.get_peft_model(
            made, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )

    def for_training(use_gradient_checkpointing=True):
        made.train()

    made.for_training, made.for_inference = for_training, made.eval
    return made


def run(folder, *, lora=False, resume=None, **settings):
    settings = {"optim": "adamw_torch"} | settings
    return toys.run(folder, resume=resume, extra={"model": policy(lora)}, **settings)


def test_method_grpo_is_unsloth_s_trainer_bit_for_bit(tmp_path):
    def args(name):
        return toys.config(tmp_path / name, GRPOConfig, optim="adamw_torch")

    def trained(cls, args):
        made = cls(
            policy(),
            toys.digit_reward,
            args,
            toys.dataset(),
            processing_class=toys.tokenizer(),
        )
        made.train()
        return made

    assert GRPOTrainer.__name__ == "UnslothGRPOTrainer" and issubclass(DEPOTrainer, GRPOTrainer)
    stock = trained(GRPOTrainer, args("a"))
    plain = as_depo_config(args("b"), None)  # Unsloth's own defaults
    plain.method = "grpo"
    ours = trained(DEPOTrainer, plain)
    assert any(toys.losses(stock)) and toys.losses(ours) == toys.losses(stock)
    assert toys.differences(toys.weights(ours), toys.weights(stock)) == []
    assert ours.curriculum.metrics()["admitted"] == 4 * 8


@pytest.mark.parametrize("lora", [False, True], ids=["", "LoRA"])
@pytest.mark.parametrize(
    ("method", "curriculum"), [("depo", WARM), ("depo+", WARM), ("dapo", {"max_rounds": 4})]
)
def test_prompts_are_chosen_settled_and_resumed(tmp_path, method, curriculum, lora):
    settings = {"method": method, "curriculum": curriculum, "lora": lora}
    whole, _ = toys.caught(run, tmp_path, **settings, **SAVE)
    assert any(toys.losses(whole))
    log = toys.outcome_log(tmp_path)
    assert len(log) == whole.curriculum.metrics()["chosen"] >= 4 * 4
    assert any(row["n_correct"] for row in log)
    resume = str(tmp_path / "checkpoint-2")
    again, _ = toys.caught(run, tmp_path, resume=resume, **settings)
    assert toys.differences(toys.everything(whole), toys.everything(again)) == []
    assert toys.outcome_log(tmp_path) == log


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (toys.FUSED | {"policy_features": 8}, "policy_features = 8: Unsloth's forward passes"),
        (
            {"type": "encoder", "backbone": "tiny-random", "width": 16},
            "distill_weight > 0: Unsloth's loss .* set it to 0",
        ),
    ],
)
def test_what_its_rewritten_loss_does_not_tell_is_refused(tmp_path, estimator, message):
    with pytest.raises(EngineError, match=message) as error:
        run(tmp_path, curriculum={"estimator": estimator, "warmup_steps": 0})
    assert "\n" not in str(error.value)


def test_unsloth_after_us_is_one_line():
    program = """
import depo_rl.trl, unsloth
from unsloth.models.rl import _patch_trl_rl_trainers
_patch_trl_rl_trainers("grpo_trainer")
depo_rl.trl.DEPOTrainer("model", lambda **_: [], depo_rl.trl.DEPOConfig("out", bf16=False))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S
    )
    last = done.stderr.splitlines()[-1]
    assert "EngineError: UnslothGRPOTrainer took the place of trl.GRPOTrainer after" in last
    assert "import unsloth first, then depo_rl" in last
