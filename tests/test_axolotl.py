"""axolotl's own loading of a file and its own builder, with our plug-in: only the model is a toy."""

import os

import pytest

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")  # before anything reads it

pytest.importorskip("axolotl")

import yaml
from axolotl.cli.config import load_cfg

import trl_toys as toys
from depo_rl.engines.trl import DEPOTrainer
from depo_rl.errors import ConfigError

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # deprecations inside axolotl and what it asks for

PLUGIN = {"plugins": ["depo_rl.axolotl.DEPOPlugin"]}
DEPO = {"method": "depo", "curriculum": {"warmup_steps": 1, "candidate_factor": 3}}
FILE = {
    "rl": "grpo",
    "trl": {
        "num_generations": 4,
        "max_completion_length": 6,
        "reward_funcs": ["trl_toys.digit_reward"],
        "use_vllm": False,
    },
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "sequence_len": 64,
    "save_strategy": "steps",
    "save_steps": 2,
    "bf16": False,
    "fp16": False,
    "seed": 3,
}


def written(tmp_path, **settings):
    """A file as a user writes it."""
    own = {
        "base_model": toys.saved_policy(tmp_path / "policy"),
        "datasets": [{"path": str(tmp_path / "rows.jsonl"), "type": "trl_toys.digit_reward"}],
        "output_dir": str(tmp_path / "run"),
    }
    file = tmp_path / "axolotl.yaml"
    file.write_text(yaml.safe_dump(own | FILE | settings))
    return str(file)


@pytest.fixture(scope="module", autouse=True)
def loaded_first(tmp_path_factory):
    """axolotl reads once, at an import, what plug-ins add to its settings."""
    load_cfg(written(tmp_path_factory.mktemp("first"), **PLUGIN))


def trainer(tmp_path, **settings):
    from axolotl.core.builders.rl import HFRLTrainerBuilder

    tmp_path.mkdir(exist_ok=True)
    cfg = load_cfg(written(tmp_path, **settings))
    builder = HFRLTrainerBuilder(cfg, toys.policy(), toys.tokenizer())
    builder.train_dataset = toys.dataset()
    return builder.build(4)


def test_two_lines_of_a_file_choose_the_prompts(tmp_path):
    from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer

    made = trainer(tmp_path, **PLUGIN, depo=DEPO)
    assert isinstance(made, DEPOTrainer) and isinstance(made, AxolotlGRPOTrainer)
    made.train()
    assert any(toys.losses(made))
    log = toys.outcome_log(tmp_path / "run")
    assert len(log) == made.curriculum.metrics()["chosen"] == 4 * 4
    assert made.args.curriculum == DEPO["curriculum"]


def test_method_grpo_is_axolotl_s_own_trainer_bit_for_bit(tmp_path):
    stock = trainer(tmp_path / "a")
    stock.train()
    ours = trainer(tmp_path / "b", **PLUGIN, depo={"method": "grpo"})
    ours.train()
    assert not isinstance(stock, DEPOTrainer) and isinstance(ours, DEPOTrainer)
    assert any(toys.losses(stock)) and toys.losses(ours) == toys.losses(stock)
    assert toys.differences(toys.weights(ours), toys.weights(stock)) == []


@pytest.mark.parametrize("depo", [DEPO, {"method": "dapo", "curriculum": {"max_rounds": 3}}])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, depo):
    whole = trainer(tmp_path, **PLUGIN, depo=depo)
    toys.caught(whole.train)
    again = trainer(tmp_path, **PLUGIN, depo=depo)
    toys.caught(again.train, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert toys.differences(toys.everything(whole), toys.everything(again)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rl": "dpo"}, "rl = 'dpo': the depo plug-in chooses prompts of rl: grpo"),
        ({"context_parallel_size": 2}, "context_parallel_size > 1: .*set it to 1"),
        (
            {"trl": FILE["trl"] | {"async_prefetch": True}},
            r"trl\.async_prefetch: .*set it to false",
        ),
        ({"trainer_cls": "my.Trainer"}, "trainer_cls = 'my.Trainer': .*drop one of the two"),
        ({"depo": {"methd": "depo"}}, r"depo\.methd: no such setting\. Did you mean 'method'\?"),
        ({"depo": "depo+"}, "depo = 'depo\\+': must be a mapping"),
        ({"depo": {"curriculum": {"keep": 1}}}, "curriculum: keep = 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_cannot_carry_is_refused_in_one_line(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        trainer(tmp_path, **PLUGIN, **settings)
    assert "\n" not in str(error.value)
