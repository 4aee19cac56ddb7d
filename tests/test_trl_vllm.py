"""vLLM as TRL sees it, by a fake of what TRL calls: rollouts whose tokens come with the
log-probabilities that they were sampled with. vLLM itself is not run."""

import random

import pytest

pytest.importorskip("trl")

import torch
import trl.trainer.grpo_trainer as theirs
from trl import GRPOConfig, GRPOTrainer

import trl_toys as toys

pytestmark = [
    toys.since("1.9"),  # before, what TRL calls took other arguments
    *(pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY),
]

VLLM = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_importance_sampling_mode": "token_truncate",
}


def told(ids) -> list[float]:
    """The log-probabilities that the fake gives with an answer of these tokens."""
    return [-1 - token / 5 - place / 7 for place, token in enumerate(ids)]


class FakeVLLM:
    """Answers of random digits, with the log-probability of each token."""

    def __init__(self, **_):
        self._random = random.Random(0)
        self.synced = 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        ids = [self._answer() for _ in prompts]
        return prompts, ids, [[[logp] for logp in told(answer)] for answer in ids], {}

    def _answer(self):
        return [self._random.randint(4, 13) for _ in range(self._random.randint(2, 6))]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(theirs, "VLLMGeneration", FakeVLLM)


def scored(folder, **settings):
    """A trainer, trained, and its scored batches."""
    made = toys.trainer(folder, **VLLM, **settings)
    batches = []
    score = made._generate_and_score_completions

    def watch(inputs):
        batches.append(score(inputs))
        return batches[-1]

    made._generate_and_score_completions = watch
    toys.caught(made.train)
    return made, batches


def test_method_grpo_is_grpotrainer_bit_for_bit(tmp_path):
    stock, of_stock = scored(tmp_path / "a", cls=GRPOTrainer, config_cls=GRPOConfig)
    ours, of_ours = scored(tmp_path / "b", method="grpo")
    assert toys.differences(of_ours, of_stock) == []
    assert any(toys.losses(stock)) and toys.losses(ours) == toys.losses(stock)
    assert toys.differences(toys.weights(ours), toys.weights(stock)) == []
    assert ours.vllm_generation.synced == stock.vllm_generation.synced == 4


@pytest.mark.parametrize(
    ("method", "curriculum"), [("depo", {"warmup_steps": 1}), ("dapo", {"max_rounds": 8})]
)
def test_each_token_keeps_the_log_probability_that_it_was_sampled_with(
    tmp_path, method, curriculum
):
    """Through choice, rounds of dynamic sampling and the correction for the sampler's distance."""
    made, batches = scored(tmp_path, method=method, curriculum=curriculum)
    assert len(batches) == 4 and any(toys.losses(made))
    if method == "dapo":
        assert made.curriculum.metrics()["rejected"], "one round a batch would prove nothing"
    for batch in batches:
        old = batch["old_per_token_logps"]
        ratio = (old - batch["sampling_per_token_logps"]).exp()
        capped = ratio.clamp(max=made.vllm_importance_sampling_clip_max)
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(batch["importance_sampling_ratio"][mask], capped[mask])
        rows = zip(batch["completion_ids"], batch["sampling_per_token_logps"], mask, strict=True)
        for ids, logps, kept in rows:
            assert logps[kept].tolist() == pytest.approx(told(ids[kept].tolist()))


def test_the_estimator_learns_from_the_sampler_s_log_probabilities(tmp_path):
    encoder = {"type": "encoder", "backbone": "tiny-random", "width": 16}
    curriculum = {"estimator": encoder, "warmup_steps": 0}
    _, (batch,) = scored(tmp_path, curriculum=curriculum, max_steps=1)
    answers = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    of_groups = [
        [logp for ids in answers[i : i + 4] for logp in told(ids)] for i in range(0, 16, 4)
    ]
    by_hand = [pytest.approx(sum(logps) / len(logps)) for logps in of_groups]
    assert [row["mean_logprob"] for row in toys.outcome_log(tmp_path)] == by_hand
