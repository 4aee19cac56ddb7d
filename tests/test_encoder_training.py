"""The encoder learns from what it should: labels from counts, known confidences, one mask, the
weights that predict.

DEPO's first public code (arXiv 2602.06375) fails each of these.
"""

import ast
import copy
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from depo_rl import make_curriculum  # noqa: E402
from depo_rl.checkpoint import load_state, save_state  # noqa: E402
from depo_rl.config import EncoderSettings  # noqa: E402
from depo_rl.errors import StateMismatch  # noqa: E402
from depo_rl.estimators.encoder import (  # noqa: E402
    EncoderEstimator,
    losses,
    network,
)
from depo_rl.estimators.encoder import estimator as encoder  # noqa: E402
from depo_rl.features import backbone  # noqa: E402
from depo_rl.types import GroupOutcome  # noqa: E402
from encoder_world import OUTCOMES, POOL, PROMPTS  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed=0, **given):
    return EncoderEstimator(
        POOL.__getitem__, EncoderSettings(**{"backbone": "tiny-random", "width": 32, **given}), seed
    )


def means(estimator):
    return estimator.predict(PROMPTS).mean_P


def gradients(estimator, outcomes=OUTCOMES):
    with estimator._mode(grad=True):
        estimator._backward(estimator._batch(outcomes))
    return {
        name: p.grad.numpy()
        for name, p in estimator._network.named_parameters()
        if p.grad is not None
    }


def batch_at(step):
    rng = np.random.default_rng(step)
    rows = rng.choice(len(PROMPTS), 10, replace=False)
    return [
        GroupOutcome(PROMPTS[i].key, int(rng.integers(9)), 8, mean_logprob=-float(rng.random()))
        for i in rows
    ]


def same(one, other):
    """Nested states equal, arrays bit for bit."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    return one == other


def test_it_imports_builds_and_runs_in_a_fresh_process():
    code = (
        "from depo_rl.config import EncoderSettings; from depo_rl.types import GroupOutcome, Prompt\n"
        "from depo_rl.estimators.encoder import EncoderEstimator\n"
        "import sys; assert 'transformers' not in sys.modules\n"
        "pool = {'a': Prompt('a', '1+1'), 'b': Prompt('b', '2+2')}\n"
        "e = EncoderEstimator(pool.__getitem__, EncoderSettings(backbone='tiny-random', width=8), 0)\n"
        "e.observe([GroupOutcome('a', 1, 8), GroupOutcome('b', 8, 8)])\n"
        "assert len(e.predict(list(pool.values()))) == 2 and e.metrics()['n_updates'] == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_asking_for_the_encoder_gives_an_encoder_that_learns():
    config = {
        "estimator": {"type": "encoder", "backbone": "tiny-random", "width": 32},
        "group_size": 8,
    }
    curriculum = make_curriculum("depo", PROMPTS, config)
    estimator = curriculum.estimator
    assert isinstance(estimator, EncoderEstimator)
    before = means(estimator)
    chosen = curriculum.propose(6)
    curriculum.settle([GroupOutcome(prompt.key, i, 8) for i, prompt in enumerate(chosen)])
    assert estimator.metrics()["n_updates"] == 1 and not np.array_equal(before, means(estimator))


def test_labels_come_from_counts_not_a_missing_field():
    batch = make()._batch(
        [GroupOutcome("k1", 6, 8), GroupOutcome("k2", 1, 2, 6), GroupOutcome("k3", 8, 8)]
    )
    assert batch.pass_rate_P.tolist() == [0.75, 0.5, 1.0]
    # a shaped reward is not a label
    shaped = make()._batch(
        [GroupOutcome("k1", 6, 8, reward_mean=-1.0), GroupOutcome("k2", 8, 8, reward_mean=0.0)]
    )
    assert shaped.pass_rate_P.tolist() == [0.75, 1.0]
    # and targets that are not 0 raise the prediction
    estimator = make(learning_rate=1e-2)
    for _ in range(20):
        estimator.observe([GroupOutcome(p.key, 8, 8) for p in PROMPTS])
    assert means(estimator).min() > 0.7


def test_unknown_logprobs_are_masked_and_counted_never_a_target():
    unknown = [GroupOutcome(o.key, o.n_correct, o.n_scored, mean_logprob=None) for o in OUTCOMES]
    assert np.abs(gradients(make(), unknown)["distill_head.weight"]).max() == 0.0
    estimator, undistilled = make(), make(distill_weight=0.0)
    estimator.observe(unknown)
    undistilled.observe(unknown)
    assert (
        estimator.metrics()["distill_missing"] == 24 and estimator.metrics()["loss_distill"] == 0.0
    )
    assert means(estimator) == pytest.approx(means(undistilled), abs=1e-6)


def test_only_real_logprobs_become_confidences():
    rows = [
        GroupOutcome("k1", 1, 8, mean_logprob=value)
        for value in (-0.5, None, float("nan"), 0.3, -1e9, 0.0)
    ]
    batch = make()._batch(rows)
    assert batch.known_P.tolist() == [True, False, False, False, True, True]
    assert batch.confidence_P[batch.known_P].tolist() == pytest.approx(
        [np.exp(-0.5), 1e-4, 1 - 1e-4]
    )


def test_after_a_resume_the_optimizer_trains_the_weights_that_predict():
    saved = make()
    saved.observe(OUTCOMES)
    resumed = make(seed=1)
    resumed.load_state_dict(saved.state_dict())
    live = {id(p) for p in resumed._network.parameters()}
    assert {id(p) for group in resumed._optimizer.param_groups for p in group["params"]} == live
    before = means(resumed)
    assert np.array_equal(before, means(saved))
    resumed.observe(OUTCOMES)
    assert np.abs(means(resumed) - before).max() > 1e-5


def test_small_updates_do_not_vanish_under_bfloat16():
    # the first AdamW step is about the learning rate, here 1e-6 (backbone) against layer norms of
    # 1.0, where bfloat16 weights cannot move by less than 4e-3
    settings = {"learning_rate": 5e-6, "weight_decay": 0.0}
    moved = {}
    for precision in ("float32", "bfloat16"):
        estimator = make(precision=precision, **settings)
        state = estimator.state_dict()
        assert {array.dtype for array in state["weights"].values()} == {np.dtype("float32")}
        assert {entry["exp_avg_sq"].dtype for entry in state["optimizer"].values()} == {
            np.dtype("float32")
        }
        estimator.observe(OUTCOMES)
        name = "backbone.encoder.layer.0.output.LayerNorm.weight"
        moved[precision] = np.abs(estimator.state_dict()["weights"][name] - state["weights"][name])
    for step in moved.values():
        assert np.median(step) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("micro_batch", [1, 2, 7, 64])
def test_the_ranking_weight_is_the_setting_whatever_the_micro_batch(micro_batch):
    none, unit, full = (
        gradients(make(ranking_weight=w, micro_batch=micro_batch)) for w in (0.0, 1.0, 3.0)
    )
    reference = gradients(make(ranking_weight=1.0, micro_batch=64))
    for name in full:
        scale = max(np.abs(full[name]).max(), 1e-3)
        np.testing.assert_allclose(
            full[name] - none[name], 3.0 * (unit[name] - none[name]), atol=1e-4 * scale
        )
        np.testing.assert_allclose(unit[name], reference[name], atol=1e-4 * scale)


def test_all_three_losses_come_from_one_dropout_mask():
    split, whole = make(micro_batch=2, dropout=0.5), make(dropout=0.5)
    ids = whole._read([POOL[outcome.key] for outcome in OUTCOMES])
    whole._network.trunk.train()
    score_P, distill_P = whole._network.logits(whole._network.vectors(ids))
    rate_P = torch.tensor([outcome.n_correct / 8 for outcome in OUTCOMES])
    confidence_P = torch.tensor(
        [min(np.exp(outcome.mean_logprob), 1 - 1e-4) for outcome in OUTCOMES]
    ).float()
    loss = (
        losses.score_loss(score_P, rate_P)
        + 0.5 * losses.distill_loss(distill_P, confidence_P, torch.ones(24, dtype=torch.bool))
        + 3.0 * losses.ranking_loss(score_P, rate_P, 0.05, 0.5)
    )
    loss.backward()
    grads = gradients(split)
    for name, p in whole._network.named_parameters():
        np.testing.assert_allclose(grads[name], p.grad.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def test_two_processes_of_one_seed_would_agree_bit_for_bit():
    one, other = make(seed=3), make(seed=3)
    torch.rand(7)  # what else a process draws does not matter
    for step in range(3):
        assert one.predict(PROMPTS).mean_P.tobytes() == other.predict(PROMPTS).mean_P.tobytes()
        one.observe(batch_at(step))
        other.observe(batch_at(step))
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("module", [encoder, losses, network, backbone])
def test_the_estimator_makes_no_distributed_calls(module):
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        names = [getattr(node, field, None) for field in ("attr", "id", "module", "name")]
        assert not any(
            isinstance(n, str) and ("distributed" in n or "accelerate" in n) for n in names
        )


@pytest.mark.parametrize(
    "given", [{}, {"precision": "bfloat16", "micro_batch": 4, "updates_per_observe": 2}]
)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(given):
    whole, first, second = make(**given), make(**given), make(seed=99, **given)
    for step in range(6):
        whole.predict(PROMPTS)
        whole.observe(batch_at(step))
        if step == 3:
            second.load_state_dict(first.state_dict())
        resumed = first if step < 3 else second
        resumed.predict(PROMPTS)
        resumed.observe(batch_at(step))
    assert means(second).tobytes() == means(whole).tobytes()
    assert same(second.state_dict(), whole.state_dict()) and second.metrics() == whole.metrics()


def test_state_is_json_values_and_arrays_and_a_copy():
    estimator = make()
    estimator.observe(OUTCOMES)
    state = estimator.state_dict()
    json.dumps(
        state, default=lambda value: value.tolist() if isinstance(value, np.ndarray) else 1 / 0
    )
    kept = copy.deepcopy(state)
    estimator.observe(OUTCOMES)
    assert same(state, kept)
    for array in state["weights"].values():
        array.setflags(write=False)  # as a memory-mapped file gives them
    estimator.load_state_dict(state)
    assert same(estimator.state_dict(), kept)


def test_state_survives_a_file(tmp_path):
    saved, resumed = make(), make(seed=1)
    saved.observe(OUTCOMES)
    save_state(tmp_path / "estimator.safetensors", saved.state_dict())
    resumed.load_state_dict(load_state(tmp_path / "estimator.safetensors"))
    saved.observe(batch_at(1))
    resumed.observe(batch_at(1))
    assert same(saved.state_dict(), resumed.state_dict())


def spoilt(state, how):
    state = copy.deepcopy(state)
    name = "trunk.0.weight"
    if how == "unknown field":
        state["extra"] = 1
    elif how == "missing field":
        del state["optimizer"]
    elif how == "type":
        state["type"] = "FusedEstimator"
    elif how == "backbone":
        state["backbone"] = "distilbert-base-uncased"
    elif how == "missing weight":
        del state["weights"][name]
    elif how == "weight shape":
        state["weights"][name] = state["weights"][name][:, :-1]
    elif how == "weight dtype":
        state["weights"][name] = state["weights"][name].astype(np.float16)
    elif how == "missing moments":
        del state["optimizer"][name]
    elif how == "moment shape":
        state["optimizer"][name]["exp_avg"] = state["optimizer"][name]["exp_avg"][:-1]
    elif how == "moment name":
        state["optimizer"][name]["momentum"] = 0
    elif how == "generator":
        state["generator"] = state["generator"][:-1]
    elif how == "counter":
        state["counters"]["n_epochs"] = 1
    elif how == "counter value":
        state["counters"]["n_updates"] = "many"
    elif how == "last":
        state["last"] = {"loss": 1.0}
    elif how == "not a mapping":
        state["weights"] = [1, 2]
    return state


SPOILT = [
    "unknown field",
    "missing field",
    "type",
    "backbone",
    "missing weight",
    "weight shape",
    "weight dtype",
]
SPOILT += [
    "missing moments",
    "moment shape",
    "moment name",
    "generator",
    "counter",
    "counter value",
    "last",
    "not a mapping",
]


@pytest.fixture(scope="module")
def pair():
    saved = make()
    saved.observe(OUTCOMES)
    return saved.state_dict(), make(seed=5)


@pytest.mark.parametrize("how", SPOILT)
def test_a_state_that_is_not_ours_is_refused_and_changes_nothing(how, pair):
    state, estimator = pair
    before = estimator.state_dict()
    with pytest.raises(StateMismatch, match=r"this (run|version)|must map"):
        estimator.load_state_dict(spoilt(state, how))
    assert same(estimator.state_dict(), before)


def test_another_width_or_a_frozen_backbone_is_refused(pair):
    state, _ = pair
    for other in (make(width=16), make(backbone_lr_scale=0.0)):
        with pytest.raises(StateMismatch):
            other.load_state_dict(state)
