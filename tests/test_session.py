"""What adapters share: settings that are the engine's, patience, figures, the log, the state."""

from __future__ import annotations

import json
import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depo_rl import GroupOutcome, Prompt
from depo_rl.commands.runs import history_row
from depo_rl.engines.session import (
    COUNTS,
    SO_FAR,
    Patience,
    Session,
    engine_config,
    live_curriculum,
    next_round,
)
from depo_rl.errors import ConfigError, RewardError, StateMismatch

PROMPTS = [Prompt(f"p{i}", f"{i}+{i}=", "even" if i % 2 == 0 else "odd") for i in range(60)]
OWNED = {"group_size": ("rollout.n", 8), "seed": ("seed", 5)}


def session(patience=None, method="depo", **settings) -> Session:
    given = settings | ({"warmup_steps": 1, "candidate_factor": 3} if method == "depo" else {})
    return Session(
        live_curriculum(method, PROMPTS, engine_config(method, given, OWNED, "curriculum")),
        patience,
    )


def group(key: str, correct: int) -> GroupOutcome:
    return GroupOutcome.of(key, [n < correct for n in range(8)], n_tokens=80)


def a_step(made: Session, step: int, n: int = 6) -> list[GroupOutcome]:
    outcomes = [group(prompt.key, (int(prompt.key[1:]) + step) % 9) for prompt in made.propose(n)]
    made.settle(outcomes, step)
    return outcomes


# -- settings --------------------------------------------------------------------------------------


def test_what_is_the_engine_s_need_not_be_given_and_may_be_given_alike():
    for given_ in ({}, {"group_size": 8}, {"seed": 5, "group_size": 8}):
        config = engine_config("depo", given_, OWNED, "curriculum")
        assert (config.group_size, config.seed) == (8, 5)
    assert engine_config("depo+", {"explore": 0.5}, OWNED, "x").band == "auto", (
        "the method's own defaults"
    )


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "depo",
            {"group_size": 4},
            r"^mine\.group_size = 4 contradicts rollout\.n = 8: set rollout\.n only$",
        ),
        ("depo", {"seed": None}, r"^mine\.seed = None contradicts seed = 5: set seed only$"),
        (
            "depo",
            {"windw": 1},
            r"^method 'depo', mine: unknown setting 'windw'\. Did you mean 'window'",
        ),
        ("dpeo", {}, "unknown method 'dpeo'"),
    ],
)
def test_what_contradicts_the_engine_is_one_line(method, given, message):
    with pytest.raises(ConfigError, match=message):
        engine_config(method, given, OWNED, "mine")


# -- patience --------------------------------------------------------------------------------------

PATIENCE = Patience(3, "max_unscorable_rounds", "round", "the judge")


def unscored(made: Session, step: int) -> None:
    made.settle([GroupOutcome(prompt.key, 0, 0, 8) for prompt in made.propose(4)], step)


def test_a_run_of_which_nothing_can_be_scored_ends_and_says_so_once_before():
    made = session(PATIENCE)
    with pytest.warns(
        UserWarning, match=r"of a whole round \(4 groups\) could be scored: .*Check the judge"
    ) as said:
        unscored(made, 1)
        unscored(made, 2)
    assert len(said) == 1
    with pytest.raises(
        RewardError, match=r"in 3 rounds in a row \(the limit, max_unscorable_rounds, is 3\)"
    ) as error:
        unscored(made, 3)
    assert "Mend the judge" in str(error.value)


def test_a_scored_group_begins_the_count_anew_and_a_resume_goes_on_with_it():
    made = session(PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unscored(made, 1)
        a_step(made, 2)
        unscored(made, 3)
        unscored(made, 4)
    again = session(PATIENCE)
    again.load_state_dict(made.state_dict())
    with pytest.raises(RewardError, match="in 3 rounds in a row"):
        unscored(again, 5)


def test_without_patience_nothing_is_said():
    made = session()
    for step in range(20):
        unscored(made, step)


def test_graded_rewards_count_as_scored_by_the_rewards():
    """A verdict without a reward tells nothing where groups count by their rewards."""
    made = session(PATIENCE, reward_range=[0, 10])
    with pytest.warns(UserWarning, match="could be scored"):
        made.settle([GroupOutcome.of(prompt.key, [True] * 8) for prompt in made.propose(4)], 1)
    made.settle(
        [GroupOutcome.of(prompt.key, [True] * 8, [0.0, 10.0] * 4) for prompt in made.propose(4)], 2
    )
    of_step, _ = made.figures()
    assert of_step["mixed_share"] == 1.0


# -- figures ---------------------------------------------------------------------------------------


def test_figures_are_of_the_step_and_of_the_run():
    made = session()
    for step in range(1, 7):
        before, rate = made.curriculum.metrics(), {}
        prompts = made.propose(6)
        rate = dict(
            zip(
                [p.key for p in prompts],
                made.curriculum.predicted(p.key for p in prompts),
                strict=True,
            )
        )
        outcomes = [group(key, int(key[1:]) % 9) for key in rate]
        made.settle(outcomes[:2], step)  # as rounds of dynamic sampling come
        made.settle(outcomes[2:], step)
        now = made.curriculum.metrics()
        of_step, so_far = made.figures()
        assert {name: of_step[name] for name in COUNTS} == {
            name: now[name] - before[name] for name in COUNTS
        }
        assert of_step["mixed_share"] == pytest.approx(sum(o.mixed for o in outcomes) / 6)
        assert of_step["all_fail_share"] == pytest.approx(sum(o.all_fail for o in outcomes) / 6)
        assert of_step["predicted_mean"] == pytest.approx(sum(rate.values()) / 6)
        assert of_step["seconds_selecting"] > 0 and of_step["seconds_learning"] > 0
        assert so_far["groups"] == 6 * step and so_far["estimator/failed_updates"] == 0
        assert {name: so_far[name] for name in SO_FAR if name in so_far}.items() <= now.items()
    assert made.figures()[0]["seconds_selecting"] == 0, "the next step has begun"


def test_what_is_unknown_is_left_out():
    of_step, so_far = session().figures()
    assert "mixed_share" not in of_step and "log_loss" not in so_far
    assert not any(math.isnan(value) for value in (of_step | so_far).values())


def test_an_engine_that_learns_later_tells_the_groups_that_it_received():
    made = session()
    outcomes = [group(prompt.key, 8) for prompt in made.propose(4)]
    made.receive(outcomes)
    of_step, so_far = made.figures()
    assert (of_step["all_pass_share"], so_far["groups"], so_far["in_flight"]) == (1.0, 0, 4)
    assert 0 < of_step["predicted_mean"] < 1
    made.learn(outcomes, 1)
    assert made.figures()[1]["groups"] == 4


def test_an_engine_may_time_what_it_does_itself():
    made = Session(session().curriculum, clocks=("waiting",))
    assert made.figures()[0]["seconds_waiting"] == 0
    with pytest.raises(KeyError), made.timed("sleeping"):
        pass
    with made.timed("waiting"):
        pass
    assert made.figures()[0]["seconds_waiting"] > 0


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 400))
def test_a_next_round_fills_what_is_missing_at_the_share_so_far(n, admitted, drawn):
    if admitted >= n or admitted > drawn:
        return
    size = next_round(n, admitted, drawn)
    assert 1 <= size <= n
    if drawn and size < n:
        share = max(admitted, 1) / drawn
        assert size * share >= n - admitted - 1e-9 > (size - 1) * share - 2e-9
    if not drawn:
        assert size == n


def test_logs_of_version_0_1_are_still_read():
    old = {"depo/rollouts": 8.0, "depo/all_pass": 0.25, "depo/all_fail": 0.5}
    new = {"depo/rollouts": 8.0, "depo/all_pass_share": 0.25, "depo/all_fail_share": 0.5}
    assert history_row(old, 1) == history_row(new, 1)
    assert history_row(new, 1)["all_fail_share"] == 0.5


# -- the log, save and resume ----------------------------------------------------------------------


def logged(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_group_is_a_row_and_a_second_outcome_is_none(tmp_path):
    made = session(gate="dynamic")
    path = tmp_path / "outcomes.jsonl"
    made.open_log(path, resume_after=None)
    outcomes = a_step(made, 3)
    made.settle(outcomes[:1], 3)
    made.close_log()
    made.close_log()
    rows = logged(path)
    assert [(row["key"], row["step"], row["n_correct"]) for row in rows] == [
        (o.key, 3, o.n_correct) for o in outcomes
    ]
    assert [row["admitted"] for row in rows] == [o.mixed for o in outcomes], "as the gate says"
    assert {row["source"] for row in rows} <= {"even", "odd"}


def test_an_engine_with_a_filter_of_its_own_says_what_it_did_not_train_on(tmp_path):
    made = session()
    made.open_log(tmp_path / "outcomes.jsonl", resume_after=None)
    keys = [prompt.key for prompt in made.propose(3)]
    made.learn(
        [group(keys[0], 4), group(keys[1], 8), GroupOutcome(keys[2], 0, 0, 8)], 1, dropped={keys[1]}
    )
    made.close_log()
    assert [row["admitted"] for row in logged(tmp_path / "outcomes.jsonl")] == [True, False, False]


def test_an_older_log_is_moved_aside_and_a_resumed_one_goes_on(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    path.write_text('{"another": "run"}\n')
    whole = session()
    whole.open_log(path, resume_after=None)
    for step in (1, 2):
        a_step(whole, step)
    state = whole.state_dict()
    for step in (3, 4):
        a_step(whole, step)
    whole.close_log()
    expected = path.read_bytes()
    assert (tmp_path / "outcomes.previous.jsonl").read_text() == '{"another": "run"}\n'

    again = session()
    again.load_state_dict(state)
    again.open_log(path, resume_after=2)
    for step in (3, 4):
        a_step(again, step)
    again.close_log()
    assert path.read_bytes() == expected
    figures = [made.figures()[1] for made in (whole, again)]
    assert figures[0] == figures[1]


def test_the_counts_of_a_resumed_run_s_first_step_are_its_own():
    made = session()
    for step in (1, 2, 3):
        a_step(made, step)
        made.figures()
    again = session()
    again.load_state_dict(made.state_dict())
    a_step(made, 4)
    a_step(again, 4)
    left, right = made.figures()[0], again.figures()[0]
    assert {name: left[name] for name in COUNTS} == {name: right[name] for name in COUNTS}


def test_a_state_of_another_run_is_refused_with_nothing_changed():
    made = session()
    a_step(made, 1)
    before = str(made.state_dict())
    for state in ({}, made.state_dict() | {"queue": []}, session(method="dapo").state_dict()):
        with pytest.raises(StateMismatch):
            made.load_state_dict(state)
    assert str(made.state_dict()) == before
