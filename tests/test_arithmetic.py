"""The demo's task and shipped policy: honest split, exact evaluation, a pool that mostly teaches
nothing."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from depo_rl.commands.demo import arithmetic
from depo_rl.commands.evaluation import dead_share

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def policy():
    return arithmetic.load_policy(), arithmetic.tokenizer()


def test_pool_is_deterministic_distinct_and_right():
    rows = arithmetic.make_pool(500, seed=3)
    assert rows == arithmetic.make_pool(500, seed=3) != arithmetic.make_pool(500, seed=4)
    assert len({row["prompt"] for row in rows}) == 500
    for row in rows:
        a, b = row["prompt"].removesuffix("=").split("+")
        assert row["answer"] == str(int(a) + int(b))
        assert row["source"] == f"add{len(a)}" == f"add{len(b)}"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pool_and_eval_share_no_problem(seed):
    mix = {2: 0.5, 3: 0.5}  # few enough problems for chance to overlap
    pool = {row["prompt"] for row in arithmetic.make_pool(3000, seed, mix)}
    held_out = {row["prompt"] for row in arithmetic.make_eval(1000, seed, mix)}
    assert len(pool) == 3000 and len(held_out) == 1000 and not pool & held_out


def test_eval_is_the_level_to_be_learnt():
    assert {row["source"] for row in arithmetic.make_eval(50, 0)} == {
        f"add{arithmetic.EVAL_DIGITS}"
    }


def test_every_level_is_held_out_in_the_number_asked_for():
    rows = arithmetic.make_levels({2: 20, 4: 5}, seed=0)
    assert [row["source"] for row in rows] == ["add2"] * 20 + ["add4"] * 5
    assert all(arithmetic.is_held_out(row) for row in rows)


def test_more_problems_than_exist_is_an_error():
    with pytest.raises(ValueError, match="not that many distinct"):
        arithmetic.make_pool(200, 0, {1: 1.0})


def test_reward_is_exact_match_after_strip():
    rewards = arithmetic.correct_reward(
        [" 12 ", "12", "120", "", "1 2"], ["12"] * 5, prompts=["5+7="] * 5
    )
    assert rewards == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_tokenizer_round_trip(policy):
    tokenizer = policy[1]
    text = "9876543210+12="
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer(["1+2=", "11+22="], padding=True)["input_ids"][0][0] == tokenizer.pad_token_id
    assert tokenizer.get_vocab() == arithmetic.make_tokenizer().get_vocab()


def test_assets_are_small_and_load_as_float32(policy):
    files = [
        f for f in (resources.files("depo_rl.commands.demo") / "assets").iterdir() if f.is_file()
    ]
    assert sum(len(f.read_bytes()) for f in files) < 2_000_000
    parameters = list(policy[0].parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert 100_000 < sum(p.numel() for p in parameters) < 1_000_000


def test_most_of_the_pool_teaches_nothing_at_the_start(policy):
    rows = arithmetic.make_pool(600, arithmetic.SETTINGS.pool_seed)
    exact = arithmetic.success_probabilities(*policy, rows)
    assert 0.7 < dead_share(exact, 8) < 0.9
    sampled = arithmetic.pass_rates(*policy, rows[:256], group_size=8, seed=0)
    assert 0.7 < np.isin(sampled, [0.0, 1.0]).mean() < 0.9


def test_exact_evaluation_agrees_with_sampling(policy):
    rows = arithmetic.make_eval(100, seed=5, mix={2: 0.3, 3: 0.7})
    exact = arithmetic.success_probabilities(*policy, rows, batch_size=32)
    sampled = arithmetic.pass_rates(*policy, rows, group_size=16, seed=1)
    assert abs(exact.mean() - sampled.mean()) < 4 * np.sqrt((exact * (1 - exact)).sum() / 16) / len(
        rows
    )
    assert np.corrcoef(exact, sampled)[0, 1] > 0.9
    assert arithmetic.evaluate(*policy, rows) == pytest.approx(exact.mean(), abs=1e-6)


def test_evaluation_leaves_generators_and_mode_alone(policy):
    model, tokenizer = policy
    rows = arithmetic.make_eval(16, seed=5)
    for training in (True, False):
        model.train(training)
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        arithmetic.evaluate(model, tokenizer, rows)
        first = arithmetic.pass_rates(model, tokenizer, rows, group_size=4, seed=0)
        assert np.array_equal(
            first, arithmetic.pass_rates(model, tokenizer, rows, group_size=4, seed=0)
        )
        assert torch.equal(before, torch.get_rng_state())
        assert np.array_equal(numpy_before, np.random.get_state()[1])
        assert model.training is training


def test_the_whole_pool_is_its_levels_as_they_are_mixed(policy):
    rows = arithmetic.make_levels({2: 30, 3: 40}, seed=7)
    found = arithmetic.evaluate_pool(*policy, rows[::-1])  # the order does not matter
    easy, hard = arithmetic.evaluate(*policy, rows[:30]), arithmetic.evaluate(*policy, rows[30:])
    assert found.accuracy == pytest.approx({"add2": easy, "add3": hard}, abs=1e-6)
    assert found.whole == pytest.approx((0.40 * easy + 0.15 * hard) / 0.55, abs=1e-6)
    assert found.pass_at_8_whole is not None and found.whole < found.pass_at_8_whole < 1


def test_room_to_learn_at_the_start(policy):
    settings = arithmetic.SETTINGS
    found = arithmetic.evaluate_pool(
        *policy, arithmetic.make_levels(settings.eval_sizes, settings.eval_seed)
    )
    assert found.whole == pytest.approx(0.4714, abs=0.002)  # of 8,500 other problems
    assert found.whole < settings.target_accuracy - 0.005
    # to be learnt, and to be forgotten
    assert found.accuracy["add3"] < 0.65 and found.accuracy["add2"] > 0.9
