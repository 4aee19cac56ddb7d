"""What makes the paper's estimator say something of P(mixed): a strength from the groups, mending,
pooling; and the vectors of a frozen backbone, computed once."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from depo_rl import make_curriculum  # noqa: E402
from depo_rl.checkpoint import load_state, save_state  # noqa: E402
from depo_rl.config import EncoderSettings  # noqa: E402
from depo_rl.errors import ConfigError, StateMismatch  # noqa: E402
from depo_rl.estimators.beliefs import Strength  # noqa: E402
from depo_rl.estimators.encoder import EncoderEstimator  # noqa: E402
from depo_rl.estimators.encoder.frozen_vectors import FrozenVectors  # noqa: E402
from depo_rl.features.backbone import own_pooling, tiny_random  # noqa: E402
from depo_rl.metrics import ece, log_loss  # noqa: E402
from depo_rl.types import GroupOutcome, Prompt  # noqa: E402

PROMPTS = [
    Prompt(f"k{i}", f"What is {37 * i} plus {i * i}?" + " Explain." * (i % 4)) for i in range(240)
]
POOL = {p.key: p for p in PROMPTS}
FROZEN = {"backbone_lr_scale": 0.0}


pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed=0, group_size=8, **given):
    settings = EncoderSettings(**{"backbone": "tiny-random", "width": 32, **given})
    return EncoderEstimator(POOL.__getitem__, settings, seed, group_size)


def batch_at(step, n=24, size=8):
    """Groups of prompts at random, whose pass rates are U-shaped: 45 % of them are mixed."""
    rng = np.random.default_rng([5, step])
    rows, rate_P = rng.choice(len(PROMPTS), n, replace=False), rng.beta(0.3, 0.3, n)
    return [
        GroupOutcome(PROMPTS[i].key, int(rng.binomial(size, p)), size)
        for i, p in zip(rows, rate_P, strict=True)
    ]


# ---- the strength


@pytest.mark.parametrize("true", [0.4, 2.0, 20.0])
def test_the_strength_is_that_of_the_groups(true):
    rng = np.random.default_rng(0)
    mean_P = rng.uniform(0.1, 0.9, 1000)
    correct_P = rng.binomial(8, rng.beta(mean_P * true, (1 - mean_P) * true))
    strength = Strength(1.0)
    strength.judge(mean_P, np.column_stack([correct_P, np.full(1000, 8)]))
    assert strength.value == pytest.approx(true, rel=0.25)


def test_a_few_groups_move_the_strength_a_little_and_the_latest_count():
    strength = Strength(1.0)
    assert strength.value == 1.0
    strength.judge(np.array([0.5, np.nan]), np.array([[8.0, 8.0], [4.0, 8.0]]))
    assert 0.3 < strength.value <= 1.0
    for correct in (0.0, 8.0):
        strength.judge(np.full(600, 0.5), np.tile([correct, 8.0], (600, 1)))
    assert strength.value < 0.2  # all or nothing
    strength.judge(np.full(1024, 0.5), np.tile([4.0, 8.0], (1024, 1)))
    assert strength.value > 50


def test_the_strengths_state_comes_back_and_a_wrong_one_changes_nothing():
    one, other = Strength(1.0), Strength(1.0)
    one.judge(np.full(9, 0.3), np.tile([2.0, 8.0], (9, 1)))
    other.load_state_dict(one.state_dict())
    for strength in (one, other):
        strength.judge(np.full(3, 0.7), np.tile([8.0, 8.0], (3, 1)))
    assert repr(one.state_dict()) == repr(other.state_dict())
    before = repr(other.state_dict())
    for change in ({"judged": np.zeros(4)}, {"value": "much"}, {"bonus": 1}):
        with pytest.raises((StateMismatch, ValueError)):
            other.load_state_dict({**one.state_dict(), **change})
    assert repr(other.state_dict()) == before


# ---- P(mixed)


@pytest.mark.parametrize("group_size", [4, 8])
def test_p_mixed_means_something_after_some_groups(group_size):
    estimator, told, mixed = make(group_size=group_size, **FROZEN), [], []
    for step in range(60):
        outcomes = batch_at(step, size=group_size)
        p_mixed_P = estimator.predict([POOL[o.key] for o in outcomes]).p_mixed(group_size)
        if step >= 20:
            told += p_mixed_P.tolist()
            mixed += [o.mixed for o in outcomes]
        estimator.observe(outcomes)
    # at a constant strength of 8: 0.45 and 1.5
    assert ece(told, mixed) < 0.1 and log_loss(told, mixed) < 0.72
    assert np.mean(told) == pytest.approx(np.mean(mixed), abs=0.06)
    metrics = estimator.metrics()
    assert (
        0.2 < metrics["strength"] < 2.0
        and {"recalibration_slope", "recalibration_offset"} <= metrics.keys()
    )


def test_neither_strength_nor_mending_changes_a_mean():
    plain, mended = make(recalibrate=False), make()
    for step in range(4):
        for estimator in (plain, mended):
            estimator.observe(batch_at(step))
    left, right = plain.predict(PROMPTS), mended.predict(PROMPTS)
    assert np.array_equal(left.mean_P, right.mean_P) and not np.array_equal(
        left.strength_P, right.strength_P
    )
    assert len(set(left.strength_P.tolist())) == 1


def test_before_any_group_the_strength_is_the_prior_one():
    estimator = make(prior_strength=3.0)
    assert estimator.predict(PROMPTS).strength_P == pytest.approx(
        np.full(len(PROMPTS), 3.0), rel=1e-6
    )


def test_partial_groups_do_not_mend_p_mixed_but_tell_the_strength():
    estimator = make()
    estimator.observe([GroupOutcome(o.key, o.n_correct // 2, 4, 4) for o in batch_at(0)])
    state = estimator.state_dict()
    assert len(state["recalibration"]["judged"]) == 0 and len(state["strength"]["judged"]) == 24


# ---- pooling


def folder_with(tmp_path, pooling, cls_token=True):
    from transformers import BertConfig, BertModel

    tokenizer, _ = tiny_random()
    if not cls_token:
        tokenizer.cls_token = None
    tokenizer.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    config = BertConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(tmp_path)
    torch.set_rng_state(state)
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(pooling)
    return str(tmp_path)


def said(**modes):
    flags = {
        f"pooling_mode_{name}": name in modes for name in ("cls_token", "mean_tokens", "max_tokens")
    }
    return json.dumps({"word_embedding_dimension": 32, **flags})


@pytest.mark.parametrize(
    ("file", "pooling"),
    [
        (None, "cls"),
        (said(cls_token=1), "cls"),
        (said(mean_tokens=1), "mean"),
        ('{"pooling_mode": "mean"}', "mean"),
    ],
)
def test_the_folder_says_how_it_is_pooled_and_cls_is_the_papers(tmp_path, file, pooling):
    estimator = make(backbone=folder_with(tmp_path, file))
    assert estimator.state_dict()["pooling"] == pooling
    estimator.observe(batch_at(0))
    assert (
        np.isfinite(estimator.predict(PROMPTS).mean_P).all()
        and estimator.metrics()["n_updates"] == 1
    )
    asked = make(backbone=str(tmp_path), pooling="cls" if pooling == "mean" else "mean")
    with pytest.raises(StateMismatch, match=f"pooling '{pooling}', this run has"):
        asked.load_state_dict(estimator.state_dict())


@pytest.mark.parametrize(
    "file",
    [
        said(max_tokens=1),
        said(cls_token=1, mean_tokens=1),
        said(),
        "[]",
        "{",
        '{"pooling_mode": 3}',
    ],
)
def test_a_pooling_that_is_not_offered_is_one_line(tmp_path, file):
    folder = folder_with(tmp_path, file)
    with pytest.raises(ConfigError, match=r"estimator\.pooling = 'auto'.*set it to") as error:
        make(backbone=folder)
    assert "\n" not in str(error.value)
    make(backbone=folder, pooling="mean")


def test_the_mean_is_over_the_tokens_and_not_the_padding():
    network = make(pooling="mean")._network
    ids = [[2, 9, 8, 3], [2, 7, 7, 7, 7, 7, 7, 3]]
    with torch.no_grad():
        alone = network.backbone(input_ids=torch.tensor([ids[0]])).last_hidden_state[0].mean(0)
        assert network.vectors(ids)[0].numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_without_a_cls_token_the_mean_can_be_read(tmp_path):
    folder = folder_with(tmp_path, None, cls_token=False)
    with pytest.raises(ConfigError, match=r"no CLS token.*estimator\.pooling to mean"):
        make(backbone=folder)
    assert np.isfinite(
        make(backbone=folder, pooling="mean").predict([*PROMPTS[:3], Prompt("e", "")]).mean_P
    ).all()


def test_the_tiny_encoder_has_no_opinion():
    assert own_pooling("tiny-random") is None


def test_a_model_of_the_hub_is_asked_and_without_an_answer_it_has_none(tmp_path, monkeypatch):
    from huggingface_hub import errors

    def unreachable(name, file):
        raise errors.LocalEntryNotFoundError(f"{name} has no {file} here")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    assert own_pooling("some/model") is None
    (tmp_path / "config.json").write_text(said(mean_tokens=1))
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda name, file: str(tmp_path / "config.json")
    )
    assert own_pooling("some/model") == "mean"
    # known to have none
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: object())
    assert own_pooling("some/model") is None


# ---- a frozen backbone's vectors


def counted(estimator):
    """How many texts the backbone is run on from here on."""
    seen, forward = [], estimator._network.backbone.forward

    def count(*args, **given):
        seen.append(len(given["input_ids"]))
        return forward(*args, **given)

    estimator._network.backbone.forward = count
    return seen


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_frozen_backbone_reads_each_text_once_and_gives_the_same_bits(pooling):
    estimator = make(pooling=pooling, **FROZEN)
    seen = counted(estimator)
    cold = estimator.predict(PROMPTS[:30]).mean_P
    assert sum(seen) == 30
    assert np.array_equal(estimator.predict(PROMPTS[:30]).mean_P, cold)
    estimator.observe([GroupOutcome(p.key, 3, 8) for p in PROMPTS[10:30]])
    assert sum(seen) == 30
    other, ids = make(pooling=pooling, **FROZEN), estimator._read(PROMPTS[:30])
    with torch.no_grad():  # in other company
        assert torch.equal(other._vectors(ids[::-1]).flip(0), estimator._vectors(ids))
    never_kept = make(pooling=pooling, **FROZEN)
    never_kept._frozen = FrozenVectors(never_kept._network.vectors, limit=0)
    assert np.array_equal(never_kept.predict(PROMPTS[:30]).mean_P, cold)


def test_vectors_of_other_weights_are_forgotten():
    donor, estimator = make(seed=1, **FROZEN), make(seed=2, **FROZEN)
    before = estimator.predict(PROMPTS[:5]).mean_P
    estimator.load_state_dict(donor.state_dict())
    after = estimator.predict(PROMPTS[:5]).mean_P
    assert np.array_equal(after, donor.predict(PROMPTS[:5]).mean_P) and not np.array_equal(
        after, before
    )


def test_a_backbone_that_learns_is_read_every_time():
    estimator = make()
    seen = counted(estimator)
    estimator.predict(PROMPTS[:10])
    estimator.predict(PROMPTS[:10])
    assert sum(seen) == 20 and estimator._frozen is None


def test_what_is_kept_is_bounded_and_the_oldest_goes_first():
    asked: list[int] = []

    def compute(ids):
        asked.append(ids[0][0])
        return torch.full((1, 4), float(ids[0][0]))

    vectors = FrozenVectors(compute, limit=3 * 4 * 4)
    assert vectors([[1], [2], [3]])[:, 0].tolist() == [1.0, 2.0, 3.0]
    vectors([[1], [4]])
    assert len(vectors) == 3 and asked == [1, 2, 3, 4]
    vectors([[2], [1]])
    assert asked == [1, 2, 3, 4, 1]


def test_a_frozen_run_resumes_exactly_though_nothing_is_kept(tmp_path):
    settings = {"type": "encoder", "backbone": "tiny-random", "width": 16, **FROZEN}
    config = {"estimator": settings, "band": "auto", "warmup_steps": 1, "seed": 3}

    def run(curriculum, steps):
        trace = []
        for step in steps:
            rng, batch = np.random.default_rng(step), curriculum.propose(8)
            curriculum.settle([GroupOutcome(p.key, int(rng.integers(9)), 8) for p in batch])
            trace.append([p.key for p in batch])
        return trace

    whole, first, second = (make_curriculum("depo", PROMPTS[:60], config) for _ in range(3))
    expected = run(whole, range(8))
    assert run(first, range(4)) == expected[:4]
    save_state(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state"))
    assert run(second, range(4, 8)) == expected[4:]
    assert repr(second.state_dict()["estimator"]) == repr(whole.state_dict()["estimator"])
