"""Importance weights on TRL: advantages times the weight of their group, once, and nothing else."""

import shutil

import pytest

pytest.importorskip("trl")

import torch

import trl_toys as toys
from depo_rl.errors import ConfigError
from test_trl_resume import LAYOUTS, SAVE

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

DRAWN = {"warmup_steps": 1, "candidate_factor": 3, "temperature": 1.0, "estimator": toys.FUSED}
WEIGHTED = DRAWN | {"importance": 1.0}
FILLED = WEIGHTED | {"gate": "dynamic", "max_rounds": 20}


class Watched(toys.DEPOTrainer):
    """Remembers, of each generation, the advantages as TRL made them and as they were trained
    on."""

    def __init__(self, *args, **kwargs):
        self.stock, self.weighted, self.trained_on = [], [], []
        super().__init__(*args, **kwargs)

    def weigh(self, output, weights, n_groups):
        self.stock.append(output["advantages"].clone())
        super().weigh(output, weights, n_groups)
        self.weighted.append(output["advantages"].clone())

    def _compute_loss(self, model, inputs):
        self.trained_on.append(inputs["advantages"].clone())
        return super()._compute_loss(model, inputs)


def run(folder, curriculum, resume=None, **settings):
    return toys.run(folder, resume, cls=Watched, method="depo+", curriculum=curriculum, **settings)


def logged_weights(folder, beta=1.0, cap=5.0) -> torch.Tensor:
    """Of each trained group, from the outcome log alone; shape (steps, 4)."""
    rows = [row for row in toys.outcome_log(folder) if row["admitted"]]
    kept = [
        [row for row in rows if row["step"] == step][:4]
        for step in sorted({row["step"] for row in rows})
    ]
    return torch.tensor(
        [[min(row["inclusion"] ** -beta, cap) for row in step] for step in kept],
        dtype=torch.float64,
    )


def test_at_zero_it_is_trl_s_own_bit_for_bit(tmp_path):
    plain = run(tmp_path / "plain", DRAWN)
    zero = run(tmp_path / "zero", DRAWN | {"importance": 0.0, "importance_cap": None})
    assert toys.differences(toys.everything(plain), toys.everything(zero)) == []
    assert all(torch.equal(a, b) for a, b in zip(zero.stock, zero.weighted, strict=True))
    assert not any("depo/importance_max" in row for row in zero.state.log_history)


@pytest.mark.parametrize(
    ("curriculum", "beta", "cap"),
    [
        (WEIGHTED, 1.0, 5.0),
        (WEIGHTED | {"importance": 0.5, "importance_cap": 1.1}, 0.5, 1.1),
        (FILLED, 1.0, 5.0),
    ],
    ids=["whole", "half, capped", "dynamic"],
)
def test_advantages_are_multiplied_exactly(tmp_path, curriculum, beta, cap):
    made = run(tmp_path, curriculum)
    weights = logged_weights(tmp_path, beta, cap)
    assert len(made.stock) == len(weights) == 4
    assert weights[0, 0] == 1.0 and len(weights.unique()) > 4, (
        "the warm-up chooses uniformly, then it is drawn"
    )
    for stock, weighted, weight in zip(made.stock, made.weighted, weights, strict=True):
        assert stock.any() and torch.equal(weighted, stock * weight.float().repeat_interleave(4))
    rows = [row for row in made.state.log_history if "loss" in row]
    for row, weight in zip(rows, weights, strict=True):
        assert row["depo/importance_max"] == pytest.approx(weight.max().item())
        share = weight.sum() ** 2 / (4 * (weight**2).sum())
        assert row["depo/effective_share"] == pytest.approx(share.item())
    assert any(toys.losses(made))


def test_the_first_step_s_gradient_is_what_the_weights_make_of_it(tmp_path):
    """At learning rate 0 both runs see the same rollouts: only the weights are between them."""
    plain = run(tmp_path / "plain", DRAWN, learning_rate=0.0)
    weighted = run(tmp_path / "weighted", WEIGHTED, learning_rate=0.0)
    assert all(torch.equal(a, b) for a, b in zip(plain.weighted, weighted.stock, strict=True))
    norms = [
        [row["grad_norm"] for row in made.state.log_history if "loss" in row]
        for made in (plain, weighted)
    ]
    assert norms[0][0] == norms[1][0] and norms[0][1:] != norms[1][1:]


def test_a_generation_used_again_is_not_weighted_again(tmp_path):
    made = run(tmp_path, WEIGHTED, num_iterations=2)
    assert len(made.weighted) == 2 and len(made.trained_on) == 4
    for i, used in enumerate(made.trained_on):
        assert torch.equal(used.sort().values, made.weighted[i // 2].sort().values)


@pytest.mark.parametrize(
    ("curriculum", "layout"),
    [
        (WEIGHTED, "plain"),
        (WEIGHTED, "inside a generation"),
        (WEIGHTED, "inside an iteration"),
        (FILLED, "plain"),
        (FILLED, "inside a generation"),
    ],
)
def test_resume_is_exact(tmp_path, curriculum, layout):
    settings, (step, *_) = LAYOUTS[layout]
    whole, _ = toys.caught(run, tmp_path / "whole", curriculum, max_steps=5, **settings, **SAVE)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", again / f"checkpoint-{step}")
    shutil.copy(tmp_path / "whole" / "outcomes.jsonl", again)
    resumed, _ = toys.caught(run, again, curriculum, True, max_steps=5, **settings)
    assert any(not torch.equal(a, b) for a, b in zip(resumed.stock, resumed.weighted, strict=True))
    assert toys.differences(toys.everything(whole), toys.everything(resumed)) == []
    assert toys.outcome_log(again) == toys.outcome_log(tmp_path / "whole")


@pytest.mark.parametrize(
    ("method", "curriculum"),
    [
        ("depo+", {"temperature": 0.0}),
        ("depo", {"temperature": 1.0}),
        ("grpo", {"temperature": 1.0}),
        ("dapo", {"temperature": 1.0}),
    ],
)
def test_without_a_draw_it_is_refused_before_a_model_is_loaded(tmp_path, method, curriculum):
    with pytest.raises(ConfigError, match=r"importance = 1.0: .*set temperature above 0") as error:
        toys.config(tmp_path, method=method, curriculum=curriculum | {"importance": 1})
    assert "\n" not in str(error.value)
