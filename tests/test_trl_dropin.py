"""DEPOTrainer takes GRPOTrainer's place: with method grpo bit for bit, with the others in every
setting TRL offers."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset, IterableDataset
from trl import GRPOConfig, GRPOTrainer, TrlParser

import trl_toys as toys
from depo_rl.engines.trl import DEPOConfig, DEPOTrainer, TokenBudget

pytestmark = [
    pytest.mark.versions,
    *(pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY),
]

EVAL = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8}
SMALL = {"per_device_train_batch_size": 8}


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param(SMALL | {"gradient_accumulation_steps": 2}, {}, id="gradient accumulation"),
        pytest.param(SMALL | {"steps_per_generation": 2}, {}, id="steps_per_generation"),
        pytest.param({"num_iterations": 2}, {}, id="num_iterations"),
        pytest.param(
            {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 32},
            {},
            id="epochs",
        ),
        pytest.param(EVAL, {"eval_dataset": toys.dataset(4)}, id="evaluation"),
        pytest.param(
            {"beta": 0.1, "loss_type": "grpo", "logging_steps": 2}, {}, id="reference model"
        ),
        pytest.param(
            {"shuffle_dataset": False, "remove_unused_columns": True}, {}, id="columns removed"
        ),
    ],
)
def test_method_grpo_is_grpotrainer_bit_for_bit(tmp_path, settings, extra):
    reward = toys.length_reward if settings.get("remove_unused_columns") else toys.digit_reward
    threshold = {"correct_threshold": -0.3} if reward is toys.length_reward else {}
    if "beta" in settings:  # TRL loads the reference model by name
        extra = {"model": toys.saved_policy(tmp_path / "policy")}
    stock = toys.run(
        tmp_path / "a",
        cls=GRPOTrainer,
        config_cls=GRPOConfig,
        rewards=reward,
        extra=extra,
        **settings,
    )
    ours = toys.run(
        tmp_path / "b", method="grpo", rewards=reward, extra=extra, **threshold, **settings
    )
    assert any(abs(loss) > 1e-4 for loss in toys.losses(stock)), (
        "a run without a gradient would prove nothing"
    )
    assert toys.losses(ours) == toys.losses(stock)
    assert toys.differences(toys.weights(ours), toys.weights(stock)) == []
    left, right = ours.optimizer.state_dict()["state"], stock.optimizer.state_dict()["state"]
    assert toys.differences(left, right) == []
    noisy = ("step_time", "runtime", "per_second")
    for theirs, own in zip(stock.state.log_history, ours.state.log_history, strict=True):
        same = {k: v for k, v in theirs.items() if not any(word in k for word in noisy)}
        assert {
            k: own.get(k, "absent") for k in same
        } == same  # all that TRL logs, the same; depo/ comes on top


@toys.since("1.9")
def test_method_grpo_takes_a_stream_of_rows_as_trl_does(tmp_path):
    def stream():
        return IterableDataset.from_generator(lambda: iter(toys.rows(32)))

    stock = toys.run(
        tmp_path / "a", cls=GRPOTrainer, config_cls=GRPOConfig, data=stream(), save_strategy="no"
    )
    ours = toys.run(
        tmp_path / "b", method="grpo", data=stream(), save_strategy="steps", save_steps=2
    )
    assert toys.losses(ours) == toys.losses(stock)
    assert toys.differences(toys.weights(ours), toys.weights(stock)) == []
    assert ours.curriculum is None


NEWER_LOSSES = {"cispo": "0.26", "sapo": "0.26", "luspo": "0.28", "vespo": "1.0"}


@pytest.mark.parametrize(
    "loss_type",
    [
        *("grpo", "dapo", "dr_grpo", "bnpo"),
        *(
            pytest.param(name, marks=toys.since(release), id=name)
            for name, release in NEWER_LOSSES.items()
        ),
    ],
)
@pytest.mark.parametrize("method", ["depo", "dapo"])
def test_every_loss_type(tmp_path, loss_type, method):
    level = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    curriculum = {"warmup_steps": 0} if method == "depo" else {"max_rounds": 1 + 1}
    made, _ = toys.caught(
        toys.run,
        tmp_path,
        method=method,
        loss_type=loss_type,
        max_steps=2,
        curriculum=curriculum,
        **level,
    )
    # not the logged losses: TRL 0.24's "grpo" is 0 before its rounding, whatever its gradient
    assert toys.differences(toys.policy().state_dict(), toys.weights(made))
    assert all(torch.isfinite(tensor).all() for tensor in toys.weights(made).values())


def test_depo_with_dapos_other_parts(tmp_path):
    """'DEPO + DAPO without dynamic sampling': clip-higher, token-level loss, soft overlong
    punishment."""
    from trl.rewards import get_soft_overlong_punishment

    punish = get_soft_overlong_punishment(max_completion_len=6, soft_punish_cache=2)
    settings = {
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "mask_truncated_completions": False,
        "beta": 0.0,
    }
    made = toys.run(
        tmp_path,
        rewards=[toys.digit_reward, punish],
        correct_reward="digit_reward",
        num_iterations=2,
        **settings,
    )
    assert made.args.method == "depo" and made.epsilon_high == 0.28
    assert any(toys.losses(made))
    for row in toys.outcome_log(tmp_path):  # correctness is the digit's, the reward is the sum
        assert row["n_scored"] == 4
        assert row["reward_mean"] <= row["n_correct"] / 4 + 1e-6


def test_plain_grpoconfig_is_promoted(tmp_path):
    args = toys.config(tmp_path, GRPOConfig, max_steps=1)
    made = DEPOTrainer(
        toys.policy(), toys.digit_reward, args, toys.dataset(), processing_class=toys.tokenizer()
    )
    made.train()
    assert isinstance(made.args, DEPOConfig) and made.args.method == "depo"
    assert type(args) is GRPOConfig, "the caller's object stays what it was"
    own = {k: v for k, v in made.args.to_dict().items() if k in args.to_dict()}
    assert own == args.to_dict()
    assert (
        torch.load(_saved(made, tmp_path) / "training_args.bin", weights_only=False).method
        == "depo"
    )


def _saved(made, folder: Path) -> Path:
    made.save_model(str(folder / "final"))
    return folder / "final"


def test_without_args_and_positional(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved, start = toys.saved_policy(tmp_path / "policy"), DEPOConfig.__post_init__

    def on_cpu(args):  # TRL's default is bf16 on a GPU
        args.bf16, args.use_cpu = False, True
        start(args)

    monkeypatch.setattr(DEPOConfig, "__post_init__", on_cpu)
    made = DEPOTrainer(saved, toys.digit_reward, None, toys.dataset(), toys.dataset(4))
    assert made.args.output_dir == "policy-DEPO"
    assert len(made.eval_dataset) == 4 and made.curriculum is not None


def test_config_from_command_line_and_yaml(tmp_path):
    parser = TrlParser((DEPOConfig,))
    line = [
        "--output_dir",
        str(tmp_path),
        "--method",
        "dapo",
        "--curriculum",
        '{"max_rounds": 3}',
        "--bf16",
        "False",
    ]
    (args,) = parser.parse_args_and_config(line)
    assert args.curriculum_config().max_rounds == 3
    file = tmp_path / "c.yaml"
    file.write_text(
        f"output_dir: {tmp_path}\nmethod: depo\nbf16: false\ncurriculum:\n  window: [0.2, 0.8]\n"
    )
    (args,) = parser.parse_args_and_config(["--config", str(file)])
    assert args.curriculum_config().window == (0.2, 0.8)
    assert args.to_dict()["curriculum"] == {"window": [0.2, 0.8]}


def test_config_repeats_nothing(tmp_path):
    args = toys.config(tmp_path, num_generations=8, seed=11)
    assert (args.curriculum_config().group_size, args.curriculum_config().seed) == (8, 11)


def test_vllm_settings_are_passed_through_and_trl_says_what_is_missing(tmp_path):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    args = toys.config(
        tmp_path, use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.1
    )
    assert args.vllm_gpu_memory_utilization == 0.1
    with pytest.raises(ImportError, match="vLLM"):
        toys.trainer(tmp_path, use_vllm=True)


# PEFT of a model without a name, until 0.21
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_peft(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    settings = {"method": "depo", "curriculum": {"warmup_steps": 1}, "beta": 0.05, "max_steps": 4}
    whole = toys.run(tmp_path / "a", extra={"peft_config": lora}, **settings)
    assert any(toys.losses(whole))
    toys.run(
        tmp_path / "b",
        extra={"peft_config": lora},
        **(settings | {"save_strategy": "steps", "save_steps": 2}),
    )
    again = toys.trainer(tmp_path / "b", extra={"peft_config": lora}, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert toys.losses(again) == toys.losses(whole)
    assert toys.differences(toys.weights(again), toys.weights(whole)) == []


@toys.since("0.25")
def test_rollout_func_and_its_extra_fields(tmp_path):
    """Sampling log-probabilities that come with the rollout, an extra column for the reward, on
    depo and dapo."""
    seen = []

    def rollout(prompts, trainer):
        ids = [trainer.processing_class(p)["input_ids"] for p in prompts]
        completions = [[4 + int(torch.randint(0, 10, ()))] * 2 for _ in prompts]
        return {
            "prompt_ids": ids,
            "completion_ids": completions,
            "logprobs": [[-0.5, -0.7]] * len(ids),
            "hint": [7] * len(ids),
        }

    def reward(completions, hint, answer, **_):
        seen.extend(hint)
        return toys.digit_reward(completions, answer)

    encoder = {"estimator": {"type": "encoder", "backbone": "tiny-random"}, "warmup_steps": 0}
    for method, curriculum in (("depo", encoder), ("dapo", {"max_rounds": 2})):
        folder = tmp_path / method
        toys.caught(
            toys.run,
            folder,
            method=method,
            curriculum=curriculum,
            rewards=reward,
            max_steps=2,
            extra={"rollout_func": rollout},
        )
        if method == "depo":
            assert all(
                row["mean_logprob"] == pytest.approx(-0.6) for row in toys.outcome_log(folder)
            )
    assert set(seen) == {7}


def test_conversational_prompts(tmp_path):
    chats = [
        {"prompt": [{"role": "user", "content": r["prompt"]}], "answer": r["answer"]}
        for r in toys.rows(32)
    ]
    plus = {"warmup_steps": 1, "estimator": toys.FUSED}
    tried = (
        ("grpo", {}),
        ("depo", {"warmup_steps": 1}),
        ("depo+", plus),
        ("dapo", {"max_rounds": 2}),
    )
    for method, curriculum in tried:
        made, _ = toys.caught(
            toys.run,
            tmp_path / method,
            method=method,
            curriculum=curriculum,
            data=Dataset.from_list(chats),
            max_steps=3,
        )
        assert any(toys.losses(made))
        log = toys.outcome_log(tmp_path / method)
        assert len(log) == made.curriculum.metrics()["chosen"] >= 3 * 4
        assert {row["prompt"] for row in log} <= {r["prompt"] for r in toys.rows(32)}


def test_train_twice_goes_on_with_the_curriculum(tmp_path):
    made = toys.trainer(tmp_path, curriculum={"warmup_steps": 1}, max_steps=2)
    made.train()
    chosen = made.curriculum.metrics()["chosen"]
    made.train()
    assert made.curriculum.metrics()["chosen"] == 2 * chosen
    assert made.curriculum.in_flight == frozenset()
    assert len(toys.outcome_log(tmp_path)) == chosen
    assert (tmp_path / "outcomes.previous.jsonl").exists()


def test_an_interrupted_generation_leaves_nothing_in_flight(tmp_path):
    broken = []

    def reward(completions, answer, **_):
        if len(broken) == 0:
            broken.append(1)
            raise KeyError("no such column")
        return toys.digit_reward(completions, answer)

    made = toys.trainer(tmp_path, rewards=reward, max_steps=1)
    with pytest.raises(KeyError):
        made.train()
    assert made.curriculum.in_flight
    made.train()
    assert not made.curriculum.in_flight


def test_model_card_and_tags_offline(tmp_path):
    made = toys.run(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    card = (tmp_path / "README.md").read_text()
    assert "depo" in card and made._tag_names[-1] == "depo"


def test_token_budget_stops(tmp_path):
    made = toys.run(tmp_path, max_steps=20, extra={"callbacks": [TokenBudget(150)]})
    per_step = made.completion_tokens_generated / made.state.global_step
    assert 150 <= made.completion_tokens_generated < 150 + 2 * per_step
    assert made.completion_tokens_generated == sum(
        row["tokens"] for row in toys.outcome_log(tmp_path)
    )
