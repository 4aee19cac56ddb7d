"""The encoder estimator's contract: predictions, learning, private randomness, hostile inputs,
loading backbones."""

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from depo_rl.config import EncoderSettings  # noqa: E402
from depo_rl.errors import ConfigError, UnknownPrompt  # noqa: E402
from depo_rl.estimators.encoder import EncoderEstimator  # noqa: E402
from depo_rl.features.backbone import tiny_random  # noqa: E402
from depo_rl.protocols import PassRateEstimator  # noqa: E402
from depo_rl.types import GroupOutcome, Prompt  # noqa: E402
from encoder_world import OUTCOMES, POOL, PROMPTS  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed=0, lookup=POOL.__getitem__, **given):
    return EncoderEstimator(
        lookup, EncoderSettings(**{"backbone": "tiny-random", "width": 32, **given}), seed
    )


def means(estimator, prompts=PROMPTS):
    return estimator.predict(prompts).mean_P


def weights(estimator):
    return estimator.state_dict()["weights"]


def gradients(estimator, outcomes):
    """Gradient of the whole loss at the present weights, by parameter name."""
    with estimator._mode(grad=True):
        estimator._backward(estimator._batch(outcomes))
    return {
        name: p.grad.numpy()
        for name, p in estimator._network.named_parameters()
        if p.grad is not None
    }


# ---- prediction


def test_prediction_has_the_contract_shape_and_range():
    estimator = make(prior_strength=5.0, recalibrate=False)
    prediction = estimator.predict(PROMPTS)
    assert isinstance(estimator, PassRateEstimator)
    assert (
        prediction.mean_P.shape == prediction.strength_P.shape == (24,)
        and prediction.mean_P.dtype == np.float64
    )
    assert ((prediction.mean_P >= 1e-4) & (prediction.mean_P <= 1 - 1e-4)).all() and (
        prediction.strength_P == 5.0
    ).all()
    assert len(estimator.predict([])) == 0


def test_untrained_prediction_is_close_to_one_half():
    assert means(make()) == pytest.approx(np.full(24, 0.5), abs=0.05)  # heads start at N(0, 0.001)


def test_prediction_does_not_depend_on_neighbours_or_micro_batch():
    whole = means(make())
    assert means(make(micro_batch=1)) == pytest.approx(whole, abs=1e-6)
    assert np.concatenate([means(make(), [p]) for p in PROMPTS[:3]]) == pytest.approx(
        whole[:3], abs=1e-6
    )


def test_prediction_is_deterministic_and_without_dropout():
    estimator = make(dropout=0.9)
    estimator.observe(OUTCOMES)
    before = estimator.state_dict()["generator"]
    assert np.array_equal(means(estimator), means(estimator))
    assert np.array_equal(before, estimator.state_dict()["generator"])


def test_a_broken_network_predicts_nan_and_does_not_raise():
    estimator = make()
    with torch.no_grad():
        estimator._network.score_head.weight.fill_(float("nan"))
    assert np.isnan(means(estimator)).all()


@pytest.mark.parametrize(
    "text", ["", " ", "\ud800 lone surrogate", "数学 🙂 ∑", "\x00", "x" * 5000]
)
def test_any_text_can_be_predicted_and_learnt(text):
    pool = {"a": Prompt("a", text), "b": PROMPTS[0]}
    estimator = make(lookup=pool.__getitem__)
    estimator.observe([GroupOutcome("a", 1, 8), GroupOutcome("b", 7, 8)])
    assert (
        np.isfinite(means(estimator, [pool["a"]])).all() and estimator.metrics()["n_updates"] == 1
    )


def test_truncated_prompts_are_cut_and_counted():
    estimator = make(max_length=16)
    long, short = Prompt("l", "y" * 100), Prompt("s", "y" * 14)  # 14 bytes and two special tokens
    assert "truncated_share" not in estimator.metrics()
    estimator.predict([long, short, short, short])
    assert estimator.metrics()["truncated_share"] == 0.25
    assert means(estimator, [long]) == pytest.approx(means(estimator, [short]), abs=1e-6)


# ---- learning


def test_it_learns_to_tell_hard_from_easy():
    prompts = [Prompt(f"q{n}-{i}", f"{'9' * n} + {i}") for n in (1, 6) for i in range(12)]
    pool = {p.key: p for p in prompts}
    estimator = make(lookup=pool.__getitem__, learning_rate=1e-2)
    for _ in range(20):
        estimator.observe(
            [GroupOutcome(p.key, 7 if p.key.startswith("q1") else 1, 8) for p in prompts]
        )
    mean_P = means(estimator, prompts)
    assert mean_P[:12].min() > 0.7 and mean_P[12:].max() < 0.3


def test_unscorable_outcomes_change_nothing():
    estimator = make()
    before = weights(estimator)
    estimator.observe([])
    estimator.observe([GroupOutcome("k1", 0, 0, 8), GroupOutcome("not in the pool", 0, 0, 8)])
    assert all(np.array_equal(before[name], array) for name, array in weights(estimator).items())
    assert estimator.metrics()["n_updates"] == 0


def test_a_partial_group_counts_by_what_was_scored():
    one, other = make(), make()
    one.observe(
        [GroupOutcome("k1", 1, 2, 6), GroupOutcome("k2", 0, 8), GroupOutcome("k3", 0, 0, 8)]
    )
    other.observe([GroupOutcome("k1", 4, 8), GroupOutcome("k2", 0, 8)])
    assert np.array_equal(means(one), means(other))


def test_an_unknown_key_is_the_lookups_error_and_teaches_nothing():
    def lookup(key):
        if key not in POOL:
            raise UnknownPrompt(f"{key!r} is not in the pool")
        return POOL[key]

    estimator = make(lookup=lookup)
    before = estimator.state_dict()
    with pytest.raises(UnknownPrompt):
        estimator.observe([OUTCOMES[0], GroupOutcome("gone", 1, 8)])
    assert (
        estimator.metrics()["n_updates"] == 0
        and estimator.state_dict()["counters"] == before["counters"]
    )


@pytest.mark.parametrize("weight", [{"distill_weight": 0.0}, {"ranking_weight": 0.0}])
def test_ablations_are_configuration(weight):
    full, ablated = make(), make(**weight)
    full.observe(OUTCOMES)
    ablated.observe(OUTCOMES)
    last = ablated.metrics()
    kept = last["loss_score"] + (
        0.5 * last["loss_distill"] if "ranking_weight" in weight else 3 * last["loss_ranking"]
    )
    assert last["loss"] == pytest.approx(kept) and not np.array_equal(means(full), means(ablated))


def test_a_head_that_is_switched_off_gets_no_gradient():
    grads = gradients(make(distill_weight=0.0), OUTCOMES)
    assert "distill_head.weight" not in grads and np.abs(grads["score_head.weight"]).max() > 0


def test_backbone_learns_slower_and_not_at_all_at_scale_zero():
    assert [g["lr"] for g in make()._optimizer.param_groups] == pytest.approx([2e-4, 4e-5])
    frozen = make(backbone_lr_scale=0.0)
    before = weights(frozen)
    frozen.observe(OUTCOMES)
    moved = {
        name.split(".")[0]
        for name, array in weights(frozen).items()
        if not np.array_equal(array, before[name])
    }
    assert "backbone" not in moved and {"trunk", "score_head"} <= moved
    assert not any(name.startswith("backbone") for name in frozen.state_dict()["optimizer"])


def test_updates_per_observe():
    estimator = make(updates_per_observe=3)
    estimator.observe(OUTCOMES)
    assert estimator.metrics()["n_updates"] == 3
    none = make(updates_per_observe=0)
    none.observe(OUTCOMES)
    assert none.metrics()["n_updates"] == 0


def test_the_gradient_is_clipped_and_reported_before_clipping():
    estimator = make(grad_clip=1e-6)
    seen = []
    step = estimator._optimizer.step
    estimator._optimizer.step = lambda: (
        seen.append(
            [p.grad.clone() for g in estimator._optimizer.param_groups for p in g["params"]]
        ),
        step(),
    )
    estimator.observe(OUTCOMES)
    norm = math.sqrt(sum(float((g**2).sum()) for g in seen[0]))
    assert norm <= 1.01e-6 < estimator.metrics()["grad_norm"]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_non_finite_update_is_skipped_and_counted(broken, monkeypatch):
    estimator = make()
    estimator.observe(OUTCOMES)
    before, last = weights(estimator), estimator.metrics()
    if broken == "loss":
        monkeypatch.setattr(
            "depo_rl.estimators.encoder.estimator.score_loss",
            lambda logit_P, _: logit_P.sum() * math.inf,
        )
    else:
        # sqrt'(0) is infinite: the loss is finite, its gradient is not
        monkeypatch.setattr(
            "depo_rl.estimators.encoder.estimator.score_loss",
            lambda x_P, _: ((x_P * 0.0) ** 2).sum().sqrt(),
        )
    estimator.observe(OUTCOMES)
    after = estimator.metrics()
    assert (
        after["updates_skipped"] == 1 and after["n_updates"] == 1 and after["loss"] == last["loss"]
    )
    assert all(np.array_equal(before[name], array) for name, array in weights(estimator).items())
    monkeypatch.undo()
    estimator.observe(OUTCOMES)
    assert estimator.metrics()["n_updates"] == 2 and np.isfinite(means(estimator)).all()


def test_an_update_that_raised_leaves_no_gradient_behind(monkeypatch):
    estimator, clean = make(dropout=0.0), make(dropout=0.0)

    def out_of_memory(parameters, norm):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", out_of_memory)
        estimator.observe(OUTCOMES)
    estimator.observe(OUTCOMES[:9])
    clean.observe(OUTCOMES[:9])
    assert np.array_equal(means(estimator), means(clean))


# ---- micro-batches


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 30), st.integers(0, 3))
def test_the_gradient_does_not_depend_on_the_micro_batch(micro_batch, seed):
    whole = gradients(make(seed=seed, micro_batch=1024), OUTCOMES)
    split = gradients(make(seed=seed, micro_batch=micro_batch), OUTCOMES)
    assert whole.keys() == split.keys()
    for name, grad in whole.items():
        np.testing.assert_allclose(
            split[name], grad, rtol=1e-3, atol=1e-6 * max(1.0, np.abs(grad).max()), err_msg=name
        )


def test_micro_batches_under_bfloat16_still_reach_the_backbone():
    whole = gradients(make(micro_batch=1024, precision="bfloat16"), OUTCOMES)
    split = gradients(make(micro_batch=5, precision="bfloat16"), OUTCOMES)
    assert whole.keys() == split.keys()
    cosines = [
        (a * split[n]).sum() / np.sqrt((a**2).sum() * (split[n] ** 2).sum() + 1e-30)
        for n, a in whole.items()
    ]
    assert np.median(cosines) > 0.99
    assert all(
        np.abs(grad).max() > 0 for name, grad in split.items() if name.endswith("query.weight")
    )


# ---- private randomness and modes


def global_state():
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(np.random.get_state()),
        random.getstate(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_global_is_touched(precision):
    before = global_state()
    estimator = make(precision=precision)
    assert global_state() == before
    estimator.predict(PROMPTS)
    assert global_state() == before
    estimator.observe(OUTCOMES)
    estimator.load_state_dict(estimator.state_dict())
    assert global_state() == before


def test_global_seeds_and_the_callers_modes_do_not_leak_in():
    def run():
        estimator = make()
        estimator.observe(OUTCOMES)
        estimator.load_state_dict(estimator.state_dict())
        estimator.observe(OUTCOMES)
        return means(estimator)

    expected = run()
    torch.manual_seed(123)
    assert np.array_equal(run(), expected)
    for mode in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        with mode:
            assert np.array_equal(run(), expected)


def test_seeds_differ():
    assert not np.array_equal(
        weights(make(1))["trunk.0.weight"], weights(make(2))["trunk.0.weight"]
    )


# ---- backbones


def saved_backbone(folder, model_class, config, dtype=torch.float32):
    tokenizer, _ = tiny_random()
    # as some published folders: only the position table says how long
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    state = torch.get_rng_state()
    model_class(config).to(dtype).save_pretrained(folder)
    torch.set_rng_state(state)
    return str(folder)


def distilbert_config(**more):
    from transformers import DistilBertConfig

    return DistilBertConfig(vocab_size=260, dim=32, n_layers=1, n_heads=2, hidden_dim=64, **more)


def test_a_local_folder_is_loaded_as_float32_and_learns(tmp_path):
    from transformers import DistilBertModel

    folder = saved_backbone(tmp_path / "enc", DistilBertModel, distilbert_config(), torch.bfloat16)
    before = global_state()
    estimator = make(backbone=folder)
    assert global_state() == before
    old = weights(estimator)
    assert {array.dtype for array in old.values()} == {np.dtype("float32")}
    estimator.observe(OUTCOMES)
    moved = [
        name for name, array in weights(estimator).items() if not np.array_equal(array, old[name])
    ]
    assert any(name.startswith("backbone") for name in moved) and any(
        name.startswith("trunk") for name in moved
    )
    assert estimator.state_dict()["backbone"] == "enc"  # not the machine's path
    with torch.no_grad():
        assert np.isfinite(means(estimator, [Prompt("l", "y" * 3000)])).all()


def test_roberta_positions_start_after_the_padding_index(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    estimator = make(backbone=saved_backbone(tmp_path / "rob", RobertaModel, config))
    assert np.isfinite(means(estimator, [Prompt("l", "y" * 3000)])).all()
    estimator.observe(OUTCOMES)  # the pooler, which nothing uses, has no gradient
    assert estimator.metrics()["n_updates"] == 1
    make(backbone=str(tmp_path / "rob")).load_state_dict(estimator.state_dict())


def test_backbones_that_cannot_serve_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"estimator\.backbone = .*tiny-random"):
        make(backbone=str(tmp_path / "nothing here"))
    from transformers import DistilBertModel

    folder = saved_backbone(tmp_path / "gpt", DistilBertModel, distilbert_config())
    tokenizer, _ = tiny_random()
    tokenizer.cls_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="no CLS token"):
        make(backbone=folder)


@pytest.mark.parametrize("device", ["warp-drive", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ConfigError, match=rf"estimator\.device = '{device}'"):
        make(device=device)


def test_settings_are_taken_by_name():
    fields = EncoderSettings(backbone="tiny-random", width=32).model_dump()
    plain = dataclasses.make_dataclass("Plain", list(fields))(**fields)
    assert np.array_equal(means(EncoderEstimator(POOL.__getitem__, plain, 0)), means(make()))
