"""What a run tells: TRL's own logging, TensorBoard's files, the outcome log."""

from collections import Counter

import pytest

pytest.importorskip("trl")

from datasets import Dataset

import trl_toys as toys
from depo_rl.breadth import BREADTH
from depo_rl.outcomes import read_log
from depo_rl.outcomes.tables import SourceOptions, Verdict, read_source

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

PROMISED = {
    *(
        "mixed_share",
        "all_pass_share",
        "all_fail_share",
        "skipped",
        "explored",
        "fallback",
        "guarded",
    ),
    *("predicted_mean", "observed_mean", "log_loss", "auc_mixed", "rollouts_saved", "tokens_saved"),
    *("seconds_selecting", "seconds_learning", "rollouts", "completion_tokens"),
    *BREADTH,
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "tb"))
        curriculum = {"warmup_steps": 1, "explore": 0.25, "window": [0.3, 0.7]}
        settings = {
            "curriculum": curriculum,
            "max_steps": 6,
            "report_to": ["tensorboard"],
            "logging_steps": 2,
        }
        made, messages = toys.caught(toys.run, folder, **settings)
    events = tensorboard.EventAccumulator(str(folder / "tb"))
    events.Reload()
    return (
        made,
        folder,
        {t: [e.value for e in events.Scalars(t)] for t in events.Tags()["scalars"]},
        messages,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_that_was_promised_is_in_tensorboards_files(logged):
    _, _, scalars, messages = logged
    found = {tag.split("depo/")[1] for tag in scalars if "depo/" in tag}
    assert found >= PROMISED, PROMISED - found
    assert any(tag.startswith("train/depo/estimator/") for tag in scalars)
    assert messages == []


def test_the_numbers_are_those_of_the_outcomes(logged):
    made, folder, scalars, _ = logged
    log = toys.outcome_log(folder)
    assert len(log) == 24
    for i, (low, high) in enumerate(((1, 2), (3, 4), (5, 6))):
        rows = [row for row in log if low <= row["step"] <= high]
        rates = [row["n_correct"] / 4 for row in rows]
        assert scalars["train/depo/mixed_share"][i] == pytest.approx(
            sum(0 < r < 1 for r in rates) / 8
        )
        assert scalars["train/depo/all_fail_share"][i] == pytest.approx(
            sum(r == 0 for r in rates) / 8
        )
        assert scalars["train/depo/observed_mean"][i] == pytest.approx(sum(rates) / 8)
        predicted = sum(row["predicted_mean"] for row in rows) / 8
        assert scalars["train/depo/predicted_mean"][i] == pytest.approx(predicted)
        explored = sum(row["chosen_because"] == "explored" for row in rows)
        assert scalars["train/depo/explored"][i] * 2 == explored  # a mean over the two generations
    assert sum(scalars["train/depo/skipped"]) * 2 == made.curriculum.metrics()["skipped"] > 0
    visits = Counter(row["key"] for row in log)
    assert scalars["train/depo/most_visits"][-1] == max(visits.values())
    assert scalars["train/depo/unseen_share"][-1] == pytest.approx(1 - len(visits) / 32)
    assert scalars["train/depo/completion_tokens"][-1] == sum(row["tokens"] for row in log)
    assert scalars["train/depo/rollouts"][-1] == 24 * 4


def test_what_depo_plus_tells(tmp_path):
    """Its own figures, and when it is guarded: the guard is made to engage by an estimator that is
    turned round."""
    curriculum = {"warmup_steps": 0, "estimator": toys.FUSED, "candidate_factor": 3}
    made = toys.trainer(tmp_path, method="depo+", curriculum=curriculum, max_steps=4)
    guard = made.curriculum._guard
    guard.judge = lambda: made.state.global_step >= 2
    made.train()
    rows = made.state.log_history[:-1]
    own = ("loss", "drift", "walk", "prompts_seen", "recalibration_slope", "recalibration_offset")
    assert {f"depo/estimator/{name}" for name in own} <= rows[-1].keys()
    assert [row["depo/guarded"] for row in rows] == [0, 0, 4, 4]
    assert rows[-1]["depo/estimator/prompts_seen"] == len(
        {row["key"] for row in toys.outcome_log(tmp_path)}
    )
    assert made.curriculum.metrics()["guarded_share"] == 0.5


def test_what_is_unknown_is_left_out(tmp_path):
    """At the first step of method grpo there is no AUC yet; TensorBoard's callback would warn about
    a None."""
    made = toys.run(
        tmp_path,
        method="grpo",
        max_steps=1,
        rewards=lambda completions, **_: [0.0] * len(completions),
    )
    row = made.state.log_history[0]
    assert "depo/auc_mixed" not in row
    assert not [name for name, value in row.items() if name.startswith("depo/") and value is None]


def test_the_outcome_log_reads_back(logged):
    _, folder, _, _ = logged
    rows = list(read_log(folder / "outcomes.jsonl"))
    assert len(rows) == 24
    assert {row.fields["answer"] for row in rows} <= {row["answer"] for row in toys.rows(32)}
    assert {row.source for row in rows} == {"even", "odd"}


def test_the_log_can_be_switched_off(tmp_path):
    toys.run(tmp_path, outcome_log=False, max_steps=1)
    assert not (tmp_path / "outcomes.jsonl").exists()


def marks(completions, **_):
    """A judge's marks of 0 to 10, by the length of the answer in words of the toy: never at the
    threshold of 0.5."""
    return [float(len(c) % 3) * 4 + 2 for c in completions]


def test_graded_rewards_are_judged_by_their_variance(tmp_path):
    settings = {
        "method": "depo+",
        "curriculum": {"reward_range": [0, 10]},
        "rewards": marks,
        "max_steps": 3,
    }
    made, messages = toys.caught(toys.run, tmp_path, **settings)
    rows = toys.outcome_log(tmp_path)
    assert messages == []  # no warning that nothing says what is correct
    assert [0 < row["n_correct"] < 4 for row in rows] == [row["reward_std"] > 0 for row in rows]
    assert sum(0 < row["n_correct"] < 4 for row in rows) > len(rows) / 2
    for step in made.state.log_history[:3]:
        assert step["depo/mixed_share"] == 1 - step["frac_reward_zero_std"]


CHATS = {
    "text": lambda text: text,
    "one message": lambda text: [{"role": "user", "content": text}],
    "two messages": lambda text: [
        {"role": "system", "content": "a: - a"},
        {"role": "user", "content": text},
    ],
    "parts": lambda text: [
        {"role": "user", "content": [{"type": "text", "text": part} for part in ("1 + 1", text)]}
    ],
}


@pytest.mark.parametrize("form", CHATS)
def test_a_dump_of_completions_has_the_keys_of_the_runs_own_log(tmp_path, form):
    rows = [row | {"prompt": CHATS[form](row["prompt"])} for row in toys.rows(32)]
    plain = Dataset.from_list([{name: row[name] for name in ("prompt", "answer")} for row in rows])
    toys.caught(toys.run, tmp_path, data=plain, max_steps=2, log_completions=True)
    own = Counter((row.key, row.prompt) for row in read_log(tmp_path / "outcomes.jsonl"))
    dump = read_source(tmp_path / "completions", SourceOptions(verdict=Verdict("digit_reward")))
    assert Counter((row.key, row.prompt) for each in dump.visits.values() for row in each) == own
    assert len(own) == 8
