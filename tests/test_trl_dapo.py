"""Dynamic sampling: the batch that TRL trains on, against a computation by hand from the rounds
that filled it."""

import pytest

pytest.importorskip("trl")

import pandas
import torch

import trl_toys as toys
from depo_rl.errors import EngineError
from depo_rl.gates import DynamicSampling

pytestmark = [
    pytest.mark.versions,
    *(pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY),
]


def watched(folder, method="dapo", **settings):
    """A trainer, the groups of its rounds, and the batches that it trains on."""
    made = toys.trainer(folder, method=method, **settings)
    rounds, batches = [], []
    roll, fill = made.roll_out, made._sampler.fill

    def record_round(n):
        groups = roll(n)
        rounds.append((made.state.global_step, groups, [group.admitted for group in groups]))
        return groups

    def record_fill(*args):
        batches.append(fill(*args))
        return batches[-1]

    made.roll_out, made._sampler.fill = record_round, record_fill
    return made, rounds, batches


def completions(output) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
    ]


def prompts(output) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
    ]


def advantages(rewards_PG: torch.Tensor) -> torch.Tensor:
    mean, std = rewards_PG.mean(1, keepdim=True), rewards_PG.std(1, keepdim=True)
    return ((rewards_PG - mean) / (std + 1e-4)).view(-1)


def test_the_final_batch_is_what_a_hand_computation_gives(tmp_path):
    made, rounds, batches = watched(tmp_path, curriculum={"max_rounds": 20}, max_steps=3)
    made.train()
    tokens_seen = 0
    assert len(rounds) > len(batches) == 3, (
        "one round a batch would prove nothing: take another seed"
    )
    for step, batch in enumerate(batches):
        of_step = [(groups, admitted) for s, groups, admitted in rounds if s == step]
        kept = [
            g
            for groups, admitted in of_step
            for g, keep in zip(groups, admitted, strict=True)
            if keep
        ][:4]
        assert len(kept) == 4
        assert completions(batch) == [c.fields[1][0] for g in kept for c in g.completions]
        assert prompts(batch) == [c.fields[0][0] for g in kept for c in g.completions]
        rewards = torch.stack([g.rewards_GF[:, 0] for g in kept])
        assert ((rewards.sum(1) > 0) & (rewards.sum(1) < 4)).all()
        torch.testing.assert_close(batch["advantages"], advantages(rewards))
        assert int(batch["num_items_in_batch"]) == sum(len(ids) for ids in completions(batch))
        everyone = [c for groups, _ in of_step for g in groups for c in g.completions]
        tokens_seen += sum(len(c.fields[0][0]) + len(c.fields[1][0]) for c in everyone)
    history = [row for row in made.state.log_history if "loss" in row]
    assert history[-1]["num_tokens"] == tokens_seen == made.state.num_input_tokens_seen
    assert history[0]["depo/rounds"] == sum(s == 0 for s, *_ in rounds)
    generated = [c for _, groups, _ in rounds for g in groups for c in g.completions]
    assert made.completion_tokens_generated == sum(len(c.fields[1][0]) for c in generated)
    log = toys.outcome_log(tmp_path)
    assert len(log) * 4 == len(generated)
    assert [row["admitted"] for row in log] == [
        keep for _, _, admitted in rounds for keep in admitted
    ]
    assert any(toys.losses(made)) and made.curriculum.in_flight == frozenset()


def test_a_round_asks_for_what_should_fill_the_batch(tmp_path):
    made, rounds, _ = watched(tmp_path, curriculum={"max_rounds": 20}, max_steps=3)
    made.train()
    for step in range(3):
        sizes = [len(groups) for s, groups, _ in rounds if s == step]
        assert sizes[0] == 4 and all(1 <= size <= 4 for size in sizes)
    surplus = sum(row.get("depo/surplus", 0) for row in made.state.log_history)
    admitted = sum(sum(a) for _, _, a in rounds)
    assert surplus == admitted - 3 * 4


@toys.since("1.0")
def test_extra_columns_and_metrics_of_reward_functions_stay_with_their_completions(tmp_path):
    calls = []

    def reward(completions, answer, log_extra, log_metric, **_):
        calls.append(len(completions))
        if len(calls) % 2:  # in some rounds only
            log_extra("told", [f"<{c}>" for c in completions])
        log_metric("calls", 1.0)
        return toys.digit_reward(completions, answer)

    made, rounds, _ = watched(
        tmp_path,
        rewards=reward,
        curriculum={"max_rounds": 20},
        max_steps=2,
        log_completions=True,
        num_completions_to_print=1,
    )
    made.train()
    told = 0
    for step in (1, 2):
        table = pandas.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert len(table) == 16
        for completion, extra in zip(table["completion"], table["told"], strict=True):
            told += isinstance(extra, str)
            assert not isinstance(extra, str) or extra == f"<{completion}>"
    assert told and len(rounds) > 2


def test_the_bound_is_kept_and_said(tmp_path):
    """Training goes on with what there is; the groups that only fill the shape take no part."""
    made, rounds, batches = watched(tmp_path, curriculum={"max_rounds": 1 + 1}, max_steps=3)
    _, messages = toys.caught(made.train)
    said = [m for m in messages if "groups were admitted after 2 rounds" in m]
    assert len(said) == 1
    short = 0
    for step, batch in enumerate(batches):
        admitted = [keep for s, _, a in rounds if s == step for keep in a]
        assert len([1 for s, *_ in rounds if s == step]) <= 2
        n_kept = min(sum(admitted), 4)
        if 0 < n_kept < 4:
            short += 1
            assert batch["completion_mask"][n_kept * 4 :].sum() == 0
            assert batch["advantages"][n_kept * 4 :].abs().sum() == 0
            assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum())
            row = [r for r in made.state.log_history if "loss" in r][step]
            assert row["depo/unfilled"] == 4 - n_kept
    assert short, "choose another seed: no batch was short"


def test_a_short_batch_gives_the_gradient_of_the_admitted_groups_alone(tmp_path):
    """The same weights as if TRL had been given only these groups: per-token loss over their
    tokens."""
    made, _, batches = watched(tmp_path, curriculum={"max_rounds": 2}, learning_rate=0.0)
    toys.caught(made.train)
    kept, batch = min(
        (int((batch["completion_mask"].sum(1) > 0).sum()), i, batch)
        for i, batch in enumerate(batches)
    )[::2]
    assert 0 < kept < 16
    alone = {k: v[:kept] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    torch.testing.assert_close(
        made._compute_loss(made.model, batch), made._compute_loss(made.model, alone)
    )


def test_nothing_admitted_changes_nothing_even_if_rewards_are_shaped(tmp_path):
    """All wrong, but of different lengths: the shaped reward varies, and must not move the
    policy."""
    before = toys.policy().state_dict()
    made, _, batches = watched(
        tmp_path,
        rewards=toys.length_reward,
        correct_threshold=5.0,
        curriculum={"max_rounds": 2},
        max_steps=2,
        weight_decay=0.0,
    )
    toys.caught(made.train)
    assert all(batch["advantages"].abs().sum() == 0 for batch in batches)
    assert toys.differences(before, made.model.state_dict()) == []
    assert toys.losses(made) == [0.0, 0.0]


def test_unscorable_rounds_are_bounded_and_not_trained_on(tmp_path):
    def reward(completions, answer, **_):
        return [None] * len(completions)

    made, rounds, _ = watched(tmp_path, rewards=reward, curriculum={"max_rounds": 2}, max_steps=2)
    before = toys.weights(made)
    toys.caught(made.train)
    assert len(rounds) == 4
    assert toys.differences(before, toys.weights(made)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 8, "steps_per_generation": 2},
        {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 1,
        },
        {"num_iterations": 2},
        {"beta": 0.05, "top_entropy_quantile": 0.5},
        {"mask_truncated_completions": True},
        {"scale_rewards": "batch"},
        pytest.param(
            {"multi_objective_aggregation": "normalize_then_sum"}, marks=toys.since("0.27")
        ),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_settings(tmp_path, settings):
    extra = {"model": toys.saved_policy(tmp_path / "policy")} if "beta" in settings else {}
    made, _, batches = watched(tmp_path, curriculum={"max_rounds": 4}, extra=extra, **settings)
    toys.caught(made.train)
    n_groups = made.args.generation_batch_size // 4
    assert all(len(batch["advantages"]) == 4 * n_groups for batch in batches)
    assert all(torch.isfinite(tensor).all() for tensor in made.model.state_dict().values())
    assert isinstance(made.curriculum.gate, DynamicSampling)


def test_tools_are_refused_in_one_line(tmp_path, monkeypatch):
    made = toys.trainer(tmp_path, method="dapo")
    made.tools = [print]
    with pytest.raises(
        EngineError, match=r"method 'dapo' with gate 'dynamic' .*single-turn rollouts only.*'depo'"
    ):
        made._check_resampling("dapo")


def test_images_are_refused_in_one_line_before_anything_is_generated(tmp_path, monkeypatch):
    monkeypatch.setattr(toys.DEPOTrainer, "_generate", lambda *_: 1 / 0)
    rows = toys.Dataset.from_list([row | {"images": [None]} for row in toys.rows(8)])
    with pytest.raises(
        EngineError, match=r"resamples text only, and this data set has images: set .*gate='none'"
    ):
        toys.trainer(tmp_path, method="dapo", data=rows)
    toys.trainer(tmp_path, method="dapo", data=rows, curriculum={"gate": "none"})


def test_nan_logits_are_explained_on_the_resampling_path_too(tmp_path):
    made = toys.trainer(tmp_path, method="dapo")
    for parameter in made.model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(EngineError, match="step 0: the policy's probabilities are NaN or infinite"):
        made.train()
