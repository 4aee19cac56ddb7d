"""The policy's states as features in a TRL run: read as TRL reads prompts, once a policy step, and
changing nothing."""

import random
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

import numpy as np
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import trl_toys as toys
from depo_rl.engines.trl import policy_states, trainer
from depo_rl.errors import EngineError

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

STATES = toys.FUSED | {"policy_features": 8}
SETTINGS = {
    "method": "depo+",
    "curriculum": {"warmup_steps": 1, "candidate_factor": 3, "estimator": STATES},
}


def by_hand(model, prompt: str) -> np.ndarray:
    """Last hidden layer at the last token, of one prompt alone."""
    ids = torch.tensor([toys.tokenizer()(prompt)["input_ids"]])
    with torch.no_grad():
        return model.eval()(ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()


def test_the_states_are_those_at_the_end_of_what_the_policy_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_states, "_TOKENS", 20)
    lengths = [toys.rows(30)[i] | {"prompt": "1+" * (i % 5) + f"{i}="} for i in range(30)]
    made = toys.trainer(tmp_path, data=Dataset.from_list(lengths), **SETTINGS)
    prompts = list(made.curriculum.pool.prompts)[::-1]
    states = made.curriculum.estimator.policy_states(prompts)
    assert states.dtype == np.float32 and states.shape == (30, 32)
    for state, prompt in zip(states, prompts, strict=True):
        assert np.allclose(state, by_hand(made.model, prompt.text), atol=1e-5), prompt.text


def test_a_conversation_is_read_through_the_chat_template(tmp_path):
    chats = [
        {"prompt": [{"role": "user", "content": r["prompt"]}], "answer": r["answer"]}
        for r in toys.rows(8)
    ]
    made = toys.run(tmp_path, data=Dataset.from_list(chats), max_steps=2, **SETTINGS)
    prompts = list(made.curriculum.pool.prompts)
    states = made.curriculum.estimator.policy_states(prompts)
    assert np.allclose(
        states[3], by_hand(made.model, f"u:{toys.rows(8)[3]['prompt']}\na:"), atol=1e-5
    )


def test_adapters_are_part_of_the_policy(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.5
    )
    made = toys.trainer(
        tmp_path, extra={"peft_config": lora}, learning_rate=0.1, max_steps=2, **SETTINGS
    )
    prompts = list(made.curriculum.pool.prompts)[:4]
    before = made.curriculum.estimator.policy_states(prompts)
    made.train()
    after = made.curriculum.estimator.policy_states(prompts)
    assert np.abs(after - before).max() > 1e-3
    for state, prompt in zip(after, prompts, strict=True):
        assert np.allclose(state, by_hand(made.model, prompt.text), atol=1e-5)


def forwards(made) -> list[tuple[int, tuple[int, ...]]]:
    """(policy step, tokens of the prompt) of every prompt that the policy is run on for its
    state."""
    seen, states = [], made.curriculum.estimator.policy_states
    forward = states._forward

    def counted(ids_P):
        seen.extend((made.state.global_step, tuple(ids)) for ids in ids_P)
        return forward(ids_P)

    states._forward = counted
    return seen


def test_one_forward_per_candidate_and_policy_step(tmp_path):
    """Two generations are made by the policy of each step; some prompts are candidates of both."""
    cycle = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
    }
    made = toys.trainer(tmp_path, data=toys.dataset(12), max_steps=3, **cycle, **SETTINGS)
    seen, asked = forwards(made), []
    predict = made.curriculum.estimator.predict
    made.curriculum.estimator.predict = lambda prompts: asked.extend(prompts) or predict(prompts)
    made.train()
    assert len(seen) == len(set(seen)) < len(asked)
    assert {step for step, _ in seen} == {0, 1, 2}


def test_a_second_run_is_another_policy(tmp_path):
    made = toys.trainer(tmp_path, max_steps=1, **SETTINGS)
    seen = forwards(made)
    made.train()
    first = len(seen)
    made.train()  # of step 0 again, with the weights that the first run left
    assert len(seen) > first


def test_without_policy_features_the_policy_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_states.PolicyStates, "_read", lambda *_: 1 / 0)
    settings = SETTINGS | {"curriculum": SETTINGS["curriculum"] | {"estimator": toys.FUSED}}
    made = toys.run(tmp_path, max_steps=2, **settings)
    assert made.curriculum.estimator.policy_states is None


def dropping(seed: int = 0):
    """A policy with dropout: a forward in training mode would draw from torch's generator."""
    model = toys.policy(seed)
    model.config.attention_dropout = 0.2
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return model


def test_reading_states_changes_nothing_that_trl_does(tmp_path):
    """Method grpo with an estimator that reads states at each generation is stock GRPOTrainer, bit
    for bit."""
    settings = {"gradient_checkpointing": False}
    stock = toys.run(
        tmp_path / "a",
        cls=GRPOTrainer,
        config_cls=GRPOConfig,
        extra={"model": dropping()},
        **settings,
    )
    made = toys.trainer(
        tmp_path / "b",
        extra={"model": dropping()},
        method="grpo",
        curriculum={"estimator": STATES},
        **settings,
    )
    seen = forwards(made)
    made.train()
    assert seen and any(toys.losses(stock))
    assert toys.losses(made) == toys.losses(stock)
    assert toys.differences(toys.weights(made), toys.weights(stock)) == []


def test_modes_and_generators_are_left_as_they_were(tmp_path):
    made = toys.trainer(tmp_path, extra={"model": dropping()}, **SETTINGS)
    made.model.train()
    made.model.model.layers[0].mlp.eval()  # as a frozen part would be

    def generators():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    modes, before = [m.training for m in made.model.modules()], generators()
    made._driver.propose(4)
    assert made.curriculum.estimator.policy_states._known
    assert [m.training for m in made.model.modules()] == modes
    assert generators() == before


def test_the_state_tells_what_the_text_does_not(tmp_path):
    """Groups are mixed where the policy's state points one way; the texts are digits that never
    repeat."""
    rng = np.random.default_rng(0)
    texts = [f"{a}+{b}=" for a, b in rng.integers(1000, 10_000, (400, 2))]
    data = Dataset.from_list([{"prompt": text, "answer": "0"} for text in texts])
    probe = toys.trainer(tmp_path / "probe", data=data, **SETTINGS)
    states = probe.curriculum.estimator.policy_states(list(probe.curriculum.pool.prompts))
    along = (states - states.mean(axis=0)) @ np.linalg.svd(states - states.mean(axis=0))[2][0]
    mixed = dict(zip(texts, along > np.quantile(along, 0.6), strict=True))

    def reward(prompts, completions, **_):
        return [float(mixed[prompt] and i % 2) for i, prompt in enumerate(prompts)]

    scores = []
    for width in (0, 16):
        made = toys.run(
            tmp_path / str(width), rewards=reward, data=data, method="grpo", learning_rate=0.0, max_steps=40,
            per_device_train_batch_size=32, curriculum={"estimator": toys.FUSED | {"policy_features": width}},
        )  # fmt: skip
        scores.append(made.curriculum.metrics()["auc_mixed"])
    assert scores[1] > scores[0] + 0.15 and scores[1] > 0.75


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda m, t: m.setattr(type(t.accelerator), "distributed_type", DistributedType.FSDP),
            "FSDP shards",
        ),
        (
            lambda m, t: m.setattr(
                type(t.accelerator.state), "deepspeed_plugin", SimpleNamespace(zero_stage=3)
            ),
            "DeepSpeed ZeRO-3 shards",
        ),
        (
            lambda m, t: m.setattr(
                type(t.accelerator), "parallelism_config", SimpleNamespace(tp_enabled=True)
            ),
            "tensor parallelism shards",
        ),
        (lambda m, t: m.setattr(t, "environment_factories", {}), "environment"),
        (lambda m, t: m.setattr(t, "_is_vlm", True), "images"),
    ],
)
def test_where_the_main_process_cannot_read_states_it_says_so(
    tmp_path, monkeypatch, change, reason
):
    made = toys.trainer(tmp_path, **SETTINGS)
    plain = toys.trainer(tmp_path, method="depo+", curriculum={"estimator": toys.FUSED})
    change(monkeypatch, made)
    change(monkeypatch, plain)
    with pytest.raises(
        EngineError, match=rf"estimator.policy_features = 8: .*{reason}.*set .*policy_features to 0"
    ) as e:
        made._policy_readings()
    assert "\n" not in str(e.value)
    assert plain._policy_readings() is None  # nobody asks


def test_it_is_refused_when_the_trainer_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "hindrance", lambda *_: "no")
    with pytest.raises(EngineError, match="no; set estimator"):
        toys.trainer(tmp_path, **SETTINGS)


ANSWERS = {
    "warmup_steps": 1,
    "candidate_factor": 3,
    "estimator": toys.FUSED | {"answer_logprob": True},
}


def test_the_answer_s_log_probability_is_the_pass_rate_s_where_it_is_said_at_once(tmp_path):
    from depo_rl.commands.demo import arithmetic

    policy, tokenizer = arithmetic.load_policy(), arithmetic.tokenizer()
    rows = arithmetic.make_pool(40, seed=3)
    args = {"method": "depo+", "curriculum": {"estimator": {"answer_logprob": True}}}
    made = toys.trainer(
        tmp_path,
        data=Dataset.from_list(rows),
        extra={"model": policy, "processing_class": tokenizer},
        **args,
    )
    prompts = list(made.curriculum.pool.prompts)
    found = np.exp(made.curriculum.estimator.answer_logprobs(prompts))
    exact = arithmetic.success_probabilities(
        policy, tokenizer, [dict(p.fields, prompt=p.text) for p in prompts]
    )
    assert found == pytest.approx(exact, rel=1e-4, abs=1e-9)


def test_a_prompt_without_an_answer_is_unknown_and_a_run_goes_on(tmp_path):
    rows = [row if i % 3 else row | {"answer": None} for i, row in enumerate(toys.rows(12))]
    data, even = (
        Dataset.from_list(rows),
        lambda completions, **_: [float(len(str(c)) % 2) for c in completions],
    )
    made = toys.run(
        tmp_path, data=data, rewards=even, max_steps=2, method="depo+", curriculum=ANSWERS
    )
    found = made.curriculum.estimator.answer_logprobs(list(made.curriculum.pool.prompts))
    assert np.isnan(found[::3]).all() and (found[np.arange(12) % 3 > 0] < 0).all()


def test_asking_for_answers_changes_nothing_that_the_policy_samples(tmp_path):
    """The same uniform choices (all of it warm-up): losses, weights and generators as without."""
    ends = []
    for estimator in (toys.FUSED, toys.FUSED | {"answer_logprob": True}):
        made = toys.trainer(
            tmp_path / str(len(ends)), extra={"model": dropping()}, max_steps=3, method="depo+",
            curriculum={"warmup_steps": 9, "estimator": estimator},
        )  # fmt: skip
        made.train()
        ends.append(
            (
                made.state.log_history[0]["loss"],
                made.model.state_dict(),
                torch.random.get_rng_state(),
            )
        )
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][2], ends[1][2])
    assert all(
        torch.equal(a, b) for a, b in zip(ends[0][1].values(), ends[1][1].values(), strict=True)
    )
