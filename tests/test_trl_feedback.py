"""On TRL the estimator is on, learns what the verifier said and the policy's confidence, and
resumes with all it knew.

The paper's first public code (arXiv 2602.06375) fails each of these.
"""

import copy

import pytest

pytest.importorskip("trl")

import torch

import trl_toys as toys

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

ENCODER = {"type": "encoder", "backbone": "tiny-random", "width": 16}
SMALL = {"per_device_train_batch_size": 8}


def test_the_estimator_is_on(tmp_path):
    """The default is method depo, and it filters: prompts are skipped by prediction once the
    warm-up is over."""
    curriculum = {"warmup_steps": 1, "window": [0.9, 1.0], "estimator": ENCODER}
    made = toys.run(tmp_path, curriculum=curriculum, max_steps=6)
    assert made.args.method == "depo"
    metrics = made.curriculum.metrics()
    assert metrics["skipped"] > 0 and metrics["estimator/n_updates"] == 6
    because = {row["step"]: set() for row in toys.outcome_log(tmp_path)}
    for row in toys.outcome_log(tmp_path):
        because[row["step"]].add(row["chosen_because"])
    assert because[1] <= {"warmup", "explored"}
    assert because[3] <= {"selected", "explored", "fallback"}


def test_labels_are_what_the_verifier_said(tmp_path):
    judged = []

    def reward(completions, answer, **_):
        judged.extend(toys.digit_reward(completions, answer))
        return judged[-len(completions) :]

    toys.run(tmp_path, rewards=reward)
    labels = [row["n_correct"] for row in toys.outcome_log(tmp_path)]
    assert labels == [int(sum(judged[i : i + 4])) for i in range(0, len(judged), 4)]
    assert 0 < sum(labels) < len(judged)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="from the loss"),
        pytest.param(
            SMALL | {"gradient_accumulation_steps": 2, "steps_per_generation": 2},
            id="from two losses",
        ),
        pytest.param(
            SMALL | {"gradient_accumulation_steps": 2, "steps_per_generation": 1}, id="twice a step"
        ),
        pytest.param(SMALL | {"steps_per_generation": 2}, id="from TRL's pass before"),
        pytest.param({"num_iterations": 2}, id="several iterations"),
        pytest.param({"temperature": 0.7, "loss_type": "grpo"}, id="temperature"),
    ],
)
def test_the_distillation_target_is_the_sampling_policys_confidence(tmp_path, settings):
    """mean_logprob of each group against a forward of our own, one completion at a time, at the
    moment of sampling."""
    expected, holder = [], {}

    def reward(prompts, completions, completion_ids, answer, **_):
        model = copy.deepcopy(holder["trainer"].model).eval()
        for start in range(0, len(prompts), 4):
            total = count = 0
            for prompt, ids in zip(
                prompts[start : start + 4], completion_ids[start : start + 4], strict=True
            ):
                read = toys.tokenizer()(prompt)["input_ids"]
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([read + list(ids)])).logits[
                        0, len(read) - 1 : -1
                    ]
                logps = (logits / settings.get("temperature", 1.0)).log_softmax(-1)
                total += float(logps.gather(1, torch.tensor(ids)[:, None]).sum())
                count += len(ids)
            expected.append(total / count)
        return toys.digit_reward(completions, answer)

    made = holder["trainer"] = toys.trainer(
        tmp_path, rewards=reward, curriculum={"estimator": ENCODER}, **settings
    )
    made.train()
    found = [row["mean_logprob"] for row in toys.outcome_log(tmp_path)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert made.curriculum.metrics()["estimator/distill_missing"] == 0
    assert made.curriculum.metrics()["estimator/loss_distill"] > 0
    assert made.curriculum.in_flight == frozenset()


def test_unknown_confidence_is_unknown(tmp_path):
    """Where nobody computes log-probabilities and nobody asked for them, the log says null, not 0
    and not 0.9999."""
    toys.run(tmp_path, method="grpo", max_steps=1)
    assert all(row["mean_logprob"] is None for row in toys.outcome_log(tmp_path))


def test_the_estimator_learns_after_a_resume(tmp_path):
    settings = {"curriculum": {"estimator": ENCODER}, "save_strategy": "steps", "save_steps": 2}
    toys.run(tmp_path, max_steps=2, **settings)
    made = toys.trainer(tmp_path, max_steps=4, **settings)
    seen = []
    load = made._driver.load_state_dict
    made._driver.load_state_dict = lambda state: (
        load(state),
        seen.append(made.curriculum.estimator.state_dict()),
    )
    made.train(resume_from_checkpoint=True)
    loaded, after = seen[0], made.curriculum.estimator.state_dict()
    assert (loaded["counters"]["n_updates"], after["counters"]["n_updates"]) == (2, 4)
    assert toys.differences(loaded["weights"], after["weights"])
    assert all(moments["step"] == 4 for moments in after["optimizer"].values())


def test_nothing_is_left_out_of_a_checkpoint(tmp_path):
    """The walk through the data, the warm-up, what exploration is owed, what is in flight: equal
    after a resume."""
    settings = {
        "curriculum": {"warmup_steps": 3, "explore": 0.1},
        "save_strategy": "steps",
        "save_steps": 3,
    }
    made = toys.run(tmp_path, max_steps=3, **settings)
    again = toys.trainer(tmp_path, max_steps=3, **settings)
    again.train(resume_from_checkpoint=True)
    left, right = made.curriculum.state_dict(), again.curriculum.state_dict()
    assert toys.differences(left, right) == []
    assert {"pool", "exploration", "estimator", "ledger", "rng"} <= left.keys()
