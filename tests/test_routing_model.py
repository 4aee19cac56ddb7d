"""What is predicted of a text, alone and in a batch, saved and read, and how fast a text of any kind
is digested."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import CheckpointError, ConfigError, StateMismatch
from depo_rl.routing import Router
from depo_rl.routing.curves import area
from depo_rl.routing.model import SuccessModel
from depo_rl.routing.router import query_text
from depo_rl.routing.rows import MAX_CHARS
from depo_rl.routing.shape import query_shape
from depo_rl.routing.store import Threshold, add_threshold, load_router
from routing_world import fitted, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("router") / "r")


@pytest.fixture(scope="module")
def stored(folder):
    return load_router(folder)


def _with_threshold(folder, value: float | None):
    stored = load_router(folder)
    number = len(stored.thresholds) + 1
    add_threshold(
        folder,
        Threshold(
            number, value, "quality", 0.95, 0.95, 9, "d", 0.5, "2026-11-01", stored.card.model
        ),
    )
    return Router(folder)


def _ask(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_gain_on_new_queries_is_predicted_far_better_than_by_the_papers_rule(stored):
    texts, score_PM = world(600, seed=1)
    predicted = stored.model.predict(texts)
    ours = area(predicted[:, 1] - predicted[:, 0], *score_PM.T)
    papers = area(-predicted[:, 0], *score_PM.T)
    assert ours.low > 0.7 and ours.value > papers.value + 0.05
    assert abs(predicted.mean(0) - score_PM.mean(0)).max() < 0.06


def test_the_same_data_give_the_same_bits_and_a_saved_model_predicts_the_same(tmp_path, stored):
    texts, score_PM = world(300)
    again, _ = SuccessModel.fit(texts, score_PM)
    new, _ = world(20, seed=2)
    expected = stored.model.predict(new)
    assert np.array_equal(again.predict(new), expected)
    save_state(tmp_path / "m", again.state_dict())
    read = SuccessModel(load_state(tmp_path / "m"))
    assert np.array_equal(read.predict(new), expected)


def test_a_text_is_judged_the_same_alone_and_among_others(stored):
    new, _ = world(130, seed=3)
    together = stored.model.predict(new)
    alone = np.concatenate([stored.model.predict([text]) for text in new[:10]])
    assert np.allclose(together[:10], alone, atol=2e-4)


@given(st.text(max_size=300))
def test_any_text_has_finite_numbers_of_one_length(text):
    numbers = query_shape(text)
    assert len(numbers) == len(query_shape("")) and np.isfinite(numbers).all()


@pytest.mark.parametrize(
    "text", ["", " ", "\ud800", "x", "١٢٣", "9" * 5000, "a b " * 50_000, "\n" * 9000, "漢字", "²"]
)
def test_no_text_breaks_a_prediction(stored, text):
    assert np.isfinite(stored.model.predict([text])).all()


def test_a_long_query_is_read_to_a_limit(stored):
    base = "prove the theorem about rings " * 200
    assert len(base) > MAX_CHARS
    longer = stored.model.predict([base + "tail " * 40_000])
    assert np.array_equal(longer, stored.model.predict([base]))


def test_the_router_sends_what_the_large_model_gains_on_and_keeps_the_rest(folder):
    router = _with_threshold(folder, 0.3)
    hard = router.route(_ask("prove the theorem about rings 12 case x"))
    easy = router.route(_ask("add the numbers 12 case x"))
    hopeless = router.route(_ask("guess the coin 12 case x"))
    assert (hard.model, hard.reason) == ("large", "gain") and hard.gain > 0.5
    assert (easy.model, easy.reason) == ("small", "within") and easy.success["small"] > 0.7
    assert hopeless.model == "small", "hard for both: the large model gains nothing"
    assert hard.threshold_version == router.threshold.version
    assert _with_threshold(folder, None).route(_ask("prove the theorem")).model == "small"


def test_what_cannot_be_judged_goes_to_the_default_and_an_override_is_taken(folder):
    router = _with_threshold(folder, 0.3)
    picture = [{"type": "text", "text": "add"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert router.route(_ask(picture)).reason == "not_text_alone"
    for nothing in ([], _ask("  "), _ask(None), _ask(7), [{"role": "tool"}], ["x"], None):
        decision = router.route(nothing)
        assert (decision.model, decision.reason, decision.gain) == ("large", "no_text", None)
    assert router.route(_ask("prove"), override="small").reason == "override"
    with pytest.raises(ConfigError, match="no model 'smal'"):
        router.route(_ask("prove"), override="smal")


def test_the_last_message_of_the_user_is_the_query():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    said = [
        *_ask("first"),
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": parts},
    ]
    assert query_text(said) == ("one\ntwo", True)
    assert query_text([*said, {"role": "tool", "content": "result"}]) == ("one\ntwo", True)


def test_a_router_that_is_missing_damaged_or_of_another_version_says_so(tmp_path):
    folder = tmp_path / "r"
    with pytest.raises(CheckpointError, match="not there"):
        Router(folder)
    fitted(folder, n=120)
    with pytest.raises(ConfigError, match="no threshold yet"):
        Router(folder)
    card = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps(card | {"format": "depo-router-0"}))
    with pytest.raises(StateMismatch, match="depo-router-0"):
        Router(folder)
    (folder / "router.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Router(folder)
    (folder / "router.json").write_text(json.dumps(card))
    blob = bytearray((folder / "model.safetensors").read_bytes())
    blob[-100] ^= 1
    (folder / "model.safetensors").write_bytes(blob)
    with pytest.raises(StateMismatch, match="goes with model"):
        Router(folder)


def test_a_threshold_of_another_model_is_refused(tmp_path):
    folder = fitted(tmp_path / "r", n=120)
    add_threshold(folder, Threshold(1, 0.1, "quality", 0.9, 0.95, 9, "d", 0.5, "2026", "other"))
    with pytest.raises(ConfigError, match="of another model"):
        Router(folder)
