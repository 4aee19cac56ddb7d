"""What a TRL run proposes and observes, and what counts as correct."""

import copy
import random

import pytest

pytest.importorskip("trl")

import numpy as np
import torch
from datasets import Dataset

import trl_toys as toys
from depo_rl import config
from depo_rl.errors import ConfigError, RewardError
from depo_rl.features.columns import ColumnBlock

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

WARM = {"warmup_steps": 1, "candidate_factor": 3}
STATES = toys.FUSED | {"policy_features": 8}
TINY_ENCODER = {"type": "encoder", "backbone": "tiny-random", "width": 16}
SMALL = {"per_device_train_batch_size": 8}


class Recorder:
    """A reward function that remembers each call; 1 where the answer's last digit is in the
    completion."""

    __name__ = "recorded"

    def __init__(self, reward=toys.digit_reward):
        self.calls, self.reward = [], reward

    def __call__(self, prompts, completions, completion_ids, answer, **columns):
        given = self.reward(completions, answer=answer)
        self.calls.append(
            {"prompts": prompts, "ids": completion_ids, "rewards": given, "columns": columns}
        )
        return given


@pytest.mark.parametrize(
    ("settings", "generations"),
    [
        pytest.param({}, 4, id="plain"),
        pytest.param(
            SMALL | {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
            8,
            id="two a step",
        ),
        pytest.param(SMALL | {"steps_per_generation": 2}, 2, id="one every other step"),
        pytest.param({"num_iterations": 2}, 2, id="each used twice"),
        pytest.param({"dataloader_num_workers": 1}, 4, id="a worker reads ahead"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.versions
def test_each_generation_is_chosen_when_due_and_observed_before_the_next(
    tmp_path, settings, generations
):
    reward = Recorder()
    made = toys.trainer(tmp_path, rewards=reward, curriculum=WARM, **settings)
    events, curriculum = [], made.curriculum
    propose, settle = curriculum.propose, curriculum.settle
    curriculum.propose = lambda n: events.append("propose") or propose(n)
    curriculum.settle = lambda outcomes: events.append("settle") or settle(outcomes)
    made.train()
    assert events == ["propose", "settle"] * generations
    log = toys.outcome_log(tmp_path)
    observed = [(row["prompt"], row["n_correct"], row["tokens"]) for row in log]
    by_hand = []
    for call in reward.calls:
        for start in range(0, len(call["prompts"]), 4):
            prompts = call["prompts"][start : start + 4]
            assert len(set(prompts)) == 1, "a group is one prompt"
            tokens = sum(len(ids) for ids in call["ids"][start : start + 4])
            by_hand.append((prompts[0], int(sum(call["rewards"][start : start + 4])), tokens))
    assert observed == by_hand
    assert curriculum.in_flight == frozenset()
    assert made.completion_tokens_generated == sum(tokens for *_, tokens in by_hand)


@pytest.mark.versions
def test_evaluation_neither_selects_nor_observes(tmp_path):
    settings = {"curriculum": WARM, "max_steps": 4}
    extra = {"eval_dataset": toys.dataset(4)}
    quiet = toys.run(tmp_path / "a", **settings, extra=extra)
    busy = toys.trainer(
        tmp_path / "b",
        **settings,
        extra=extra,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
    )
    counts = []
    busy.add_callback(_OnEvaluate(lambda: counts.append(busy.curriculum.metrics()["chosen"])))
    busy.train()
    assert counts == [4, 8, 12, 16]
    assert busy.curriculum.metrics()["chosen"] == quiet.curriculum.metrics()["chosen"] == 16
    before = busy.curriculum.state_dict()
    tokens = busy.completion_tokens_generated
    busy.evaluate()
    assert toys.differences(before, busy.curriculum.state_dict()) == []
    assert busy.completion_tokens_generated == tokens
    assert not any(key.startswith("eval_depo") for row in busy.state.log_history for key in row)


def _OnEvaluate(function):
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            function()

    return Callback()


def test_selection_leaves_the_global_generators_alone(tmp_path):
    made = toys.trainer(tmp_path, curriculum={"estimator": TINY_ENCODER, "warmup_steps": 0})

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    type(made._driver)(
        made.accelerator, made.train_dataset, made.args, made.curriculum.config
    ).propose(4)
    made._driver.propose(4)
    assert states() == before


def test_what_the_model_samples_does_not_depend_on_the_estimator(tmp_path):
    """At the first generation, which all estimators fill by the same walk, the completions are the
    same."""
    ids = []
    for name, estimator in (("a", {"type": "fused"}), ("b", TINY_ENCODER), ("c", STATES)):
        reward = Recorder()
        curriculum = {"estimator": estimator, "warmup_steps": 9}
        toys.run(tmp_path / name, rewards=reward, max_steps=1, curriculum=curriculum)
        ids.append(reward.calls[0]["ids"])
    assert ids[0] == ids[1] == ids[2]


# what stock TRL does with its rows is its own affair
@pytest.mark.parametrize("method", ["depo", "depo+", "dapo"])
def test_no_row_is_written_into_twice(tmp_path, method):
    counted = []

    def reward(completions, answer, note, **_):
        for entry in note:
            entry["uses"] += 1
            counted.append(entry["uses"])
        return toys.digit_reward(completions, answer)

    data = Dataset.from_list([{**row, "note": {"uses": 0}} for row in toys.rows(16)])
    plus = {"warmup_steps": 0, "estimator": STATES}
    curriculum = {"depo": {"warmup_steps": 0}, "depo+": plus, "dapo": {"max_rounds": 3}}[method]
    settings = {"method": method, "curriculum": curriculum, "num_train_epochs": 3, "max_steps": 6}
    toys.caught(toys.run, tmp_path, rewards=reward, data=data, **settings)
    assert set(counted) == {1}


@pytest.mark.versions
@pytest.mark.parametrize("method", ["grpo", "depo"])
def test_repeated_rows_have_histories_of_their_own(tmp_path, method):
    data = Dataset.from_list([*toys.rows(4), *toys.rows(4)])
    (made, messages) = toys.caught(
        toys.run, tmp_path, method=method, data=data, per_device_train_batch_size=32, max_steps=2
    )
    assert sum("4 of 8 rows of train_dataset repeat" in message for message in messages) == 1
    log = toys.outcome_log(tmp_path)
    assert len(log) == 16 and made.curriculum.metrics()["duplicates"] == 0
    assert len({row["key"] for row in log}) == 8


def test_columns_and_sources_reach_the_prompts(tmp_path):
    made = toys.trainer(tmp_path)
    prompt = made.curriculum.pool.prompts[0]
    assert (prompt.source, prompt.fields["answer"]) == ("even", "0")


@pytest.mark.parametrize("removed", [False, True])
def test_columns_are_features_whether_or_not_trl_removes_them_from_the_rows(tmp_path, removed):
    """remove_unused_columns keeps them from the reward functions, not from the estimator."""
    seen = set()

    def reward(prompts, completions, **columns):
        seen.update(columns)
        return [float(sums[prompt] < 9 and i % 2) for i, prompt in enumerate(prompts)]

    data = [
        {**row, "prompt": f"{row['prompt']}?", "total": int(row["answer"])} for row in toys.rows(96)
    ]
    sums = {row["prompt"]: row["total"] for row in data}
    estimator = toys.FUSED | {"columns": ["total"], "history": False, "drift": False}
    made = toys.run(
        tmp_path, rewards=reward, data=Dataset.from_list(data), remove_unused_columns=removed, method="depo+",
        curriculum={"warmup_steps": 4, "guard": False, "estimator": estimator}, max_steps=12, learning_rate=0.0,
        per_device_train_batch_size=32,
    )  # fmt: skip
    assert (
        made.curriculum.pool.prompts[3].fields["total"] == 3
        and made.curriculum.pool.prompts[3].source == "odd"
    )
    (columns,) = (
        block for block in made.curriculum.estimator._table.blocks if isinstance(block, ColumnBlock)
    )
    assert columns.columns.names == ("total",)
    assert ("total" in seen) is not removed
    told = made.curriculum.estimator.predict(made.curriculum.pool.prompts).p_mixed(4)
    easy = np.array([row["total"] < 9 for row in data])
    assert np.median(told[easy]) > np.median(told[~easy]) + 0.2


@pytest.mark.parametrize("method", ["grpo", "dapo", "depo"])
def test_every_method_runs_when_trl_removes_columns(tmp_path, method):
    """Sources are part of a prompt's key: rows with and without them must not be taken for
    different prompts."""
    settings = {
        "remove_unused_columns": True,
        "rewards": toys.length_reward,
        "correct_threshold": -0.3,
    }
    made, _ = toys.caught(toys.run, tmp_path, method=method, max_steps=2, **settings)
    assert made.curriculum.metrics()["admitted"] + made.curriculum.metrics()["rejected"] >= 8
    sources = {row["source"] for row in toys.outcome_log(tmp_path)}
    assert sources == ({"default"} if method == "grpo" else {"even", "odd"})


@pytest.mark.parametrize("method", ["depo", "dapo", "grpo"])
def test_settings_are_parsed_once_and_kept(tmp_path, monkeypatch, method):
    """Not at each generation, nor by each part that reads one of them."""
    parsed, validated = [], config.validated

    def counted(model, given, where):
        parsed.extend([where] if model is config.CurriculumConfig else [])
        return validated(model, given, where)

    monkeypatch.setattr(config, "validated", counted)
    args = toys.config(tmp_path, method=method, max_steps=3)
    assert len(parsed) == 1, "so that a mistake is said before a model is loaded"
    made = toys.DEPOTrainer(
        toys.policy(), toys.digit_reward, args, toys.dataset(), processing_class=toys.tokenizer()
    )
    toys.caught(made.train)
    assert len(parsed) == 2 and made.curriculum.metrics()["admitted"] >= 12


# -- correctness -----------------------------------------------------------------------------------


def some_none(completions, answer, **_):
    """Half the completions cannot be judged."""
    return [
        None if i % 2 else value for i, value in enumerate(toys.digit_reward(completions, answer))
    ]


@pytest.mark.versions
def test_none_rewards_are_unscorable_not_wrong(tmp_path):
    toys.run(tmp_path, rewards=some_none, curriculum=WARM)
    log = toys.outcome_log(tmp_path)
    assert all((row["n_scored"], row["n_failed"]) == (2, 2) for row in log)
    assert any(row["n_correct"] for row in log)


def test_weights_and_a_named_judge(tmp_path):
    recorded = Recorder(toys.length_reward)
    made = toys.run(
        tmp_path,
        rewards=[recorded, toys.digit_reward],
        reward_weights=[2.0, 0.5],
        correct_reward="digit_reward",
        curriculum=WARM,
    )
    assert made.curriculum is not None
    log = toys.outcome_log(tmp_path)
    lengths = [r for call in recorded.calls for r in call["rewards"]]
    for i, row in enumerate(log):
        mean_length = sum(lengths[4 * i : 4 * i + 4]) / 4
        assert row["reward_mean"] == pytest.approx(
            2.0 * mean_length + 0.5 * row["n_correct"] / 4, abs=1e-6
        )


def test_a_threshold_on_a_shaped_reward(tmp_path):
    recorded = Recorder(toys.length_reward)
    _, messages = toys.caught(
        toys.run, tmp_path, rewards=recorded, correct_threshold=-0.35, max_steps=2
    )
    assert messages == []
    given = [r for call in recorded.calls for r in call["rewards"]]
    expected = [sum(r >= -0.35 for r in given[i : i + 4]) for i in range(0, len(given), 4)]
    assert [row["n_correct"] for row in toys.outcome_log(tmp_path)] == expected
    assert 0 < sum(expected) < len(given)


@toys.since("1.0")  # log_metric and log_extra
def test_correct_fn_judges_and_is_called_like_a_reward(tmp_path):
    def correct(
        prompts, completions, completion_ids, answer, trainer_state, log_metric, log_extra, **_
    ):
        log_metric("judged", float(len(prompts)))
        assert trainer_state.global_step in (0, 1)
        return [None if not c else a[-1] in c for c, a in zip(completions, answer, strict=True)]

    recorded = Recorder(toys.length_reward)
    made, messages = toys.caught(
        toys.run,
        tmp_path,
        rewards=recorded,
        max_steps=2,
        extra={"correct_fn": correct},
        log_completions=False,
    )
    assert messages == []
    assert made.state.log_history[0]["judged"] == 16.0
    assert any(row["n_correct"] for row in toys.outcome_log(tmp_path))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda **_: 1 / 0, "correct_fn raised ZeroDivisionError"),
        (lambda prompts, **_: [True], "correct_fn returned 1 values for 16 completions"),
        (
            lambda prompts, **_: ["yes"] * len(prompts),
            "correct_fn raised ValueError: could not convert",
        ),
    ],
)
def test_a_broken_correct_fn(tmp_path, function, message):
    with pytest.raises(RewardError, match=message):
        toys.run(tmp_path, extra={"correct_fn": function})


def test_correctness_settings_are_checked_early(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"correct_reward = 'nope': no reward function of that name\. Known: digit_reward",
    ):
        toys.trainer(tmp_path, correct_reward="nope")
    with pytest.raises(ConfigError, match="correct_fn both say"):
        toys.trainer(tmp_path, correct_reward="digit_reward", extra={"correct_fn": lambda **_: []})


def test_shaped_rewards_without_a_judge_are_warned_about_once(tmp_path):
    _, messages = toys.caught(toys.run, tmp_path, rewards=toys.length_reward)
    assert len(messages) == 1
    assert (
        "shaped (length_reward)" in messages[0]
        and "at least 0.5" in messages[0]
        and "correct_fn" in messages[0]
    )
    _, messages = toys.caught(toys.run, tmp_path, rewards=toys.digit_reward)
    assert messages == []


@toys.since("0.27")
def test_async_reward_functions(tmp_path):
    async def later(completions, answer, **_):
        return toys.digit_reward(completions, answer)

    made = toys.run(
        tmp_path,
        rewards=[later, toys.digit_reward],
        correct_reward="later",
        method="depo",
        max_steps=2,
    )
    assert any(row["n_correct"] for row in toys.outcome_log(tmp_path))
    assert made.curriculum.metrics()["admitted"] == 8


def test_unscorable_generations_change_nothing_and_end_the_run(tmp_path):
    def reward(completions, **_):
        return [None] * len(completions)

    made = toys.trainer(tmp_path, rewards=reward, max_unscorable_generations=3, max_steps=9)
    before = copy.deepcopy(made.model.state_dict())
    estimator = copy.deepcopy(made.curriculum.estimator.state_dict())

    def train():
        with pytest.raises(
            RewardError, match="no reward could be scored in 3 generations in a row"
        ):
            made.train()

    _, messages = toys.caught(train)
    assert sum("nothing was learnt" in message for message in messages) == 1
    assert made.state.global_step == 2
    assert toys.differences(before, made.model.state_dict()) == []
    assert toys.differences(estimator, made.curriculum.estimator.state_dict()) == []


def test_nothing_grows_with_the_run(tmp_path):
    made = toys.trainer(
        tmp_path,
        curriculum=WARM | {"estimator": {"type": "fused", "replay_prompts": 8}},
        max_steps=6,
    )
    made.train()
    driver = made._driver
    assert driver.session._received == [] and made._generation is None
    assert all(len(values) <= 1 for values in made._metrics["train"].values())
    assert sum(len(values) for values in made._pending_extra_logs.values()) == 0
    assert len(made.curriculum.estimator.state_dict()) < 20
