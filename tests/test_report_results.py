"""``results.json``: strict in, strict out, NaN is null, nothing unmeasured becomes 0."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl.errors import CheckpointError, DataError
from depo_rl.report import AccuracyPoint, RunResult, SourceAccuracy, read_results, write_results
from depo_rl.report.results import forgotten_sources, parse_results

SECTION_5 = [
    "method", "seed", "steps", "groups", "rollouts", "tokens", "mixed_share", "all_pass_share", "all_fail_share",
    "explored_share", "fallback_share", "candidates_scored", "seconds_selecting", "seconds_learning", "auc_mixed",
    "log_loss", "ece", "accuracy", "rollouts_to_target",
]  # fmt: skip
WHOLE = {"accuracy_whole", "accuracy_by_source", "forgotten", "pass_at_8_whole"}
BREADTH = {
    "sources_per_batch",
    "distinct_share",
    "unseen_share",
    "effective_prompts",
    "most_visits",
}

share = st.none() | st.floats(0, 1)
amount = st.none() | st.floats(0, 1e12)
count = st.none() | st.integers(0, 2**53)
points = st.none() | st.lists(
    st.builds(
        AccuracyPoint, rollouts=count, tokens=count, seconds=amount, accuracy=share, step=count
    ),
    max_size=3,
)
history = st.none() | st.lists(
    st.fixed_dictionaries({"step": st.floats(0, 1e6), "reward": st.none() | st.floats(-9, 9)}),
    max_size=3,
)
accuracies = st.builds(SourceAccuracy, start=share, end=share)
runs = st.builds(
    RunResult, method=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    seed=st.integers(-9, 9), steps=count, groups=count, rollouts=count, tokens=count, mixed_share=share,
    all_pass_share=share, all_fail_share=share, explored_share=share, fallback_share=share, candidates_scored=count,
    seconds_selecting=amount, seconds_learning=amount, auc_mixed=share, log_loss=amount, ece=share, accuracy=points,
    rollouts_to_target=count, seconds_to_target=amount, seconds_total=amount, target=share, history=history,
    reliability=st.none(), ece_floor=amount, guarded_share=share, accuracy_whole=share, pass_at_8_whole=share,
    accuracy_by_source=st.none() | st.dictionaries(st.text("ab/ ", max_size=3), accuracies, max_size=3),
    forgotten=st.none() | st.lists(st.text("ab", max_size=2), max_size=2), sources_per_batch=amount,
    distinct_share=share, unseen_share=share, effective_prompts=amount, most_visits=count,
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(runs, max_size=4, unique_by=lambda run: (run.method, run.seed)))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, wanted: list[RunResult]) -> None:
    path = tmp_path_factory.getbasetemp() / "results.json"
    write_results(wanted, path)
    assert read_results(path) == wanted
    assert read_results(path) == parse_results(json.loads(path.read_text("utf-8")))


def test_every_field_of_the_design_is_written_and_null_if_unknown(tmp_path: Path) -> None:
    write_results([RunResult(method="grpo", seed=0)], tmp_path / "results.json")
    (run,) = json.loads((tmp_path / "results.json").read_text())
    assert list(run)[: len(SECTION_5)] == SECTION_5
    assert run.keys() >= WHOLE | BREADTH
    assert {name for name, value in run.items() if value is not None} == {"method", "seed"}


def test_nan_and_numpy_become_null_and_plain(tmp_path: Path) -> None:
    run = RunResult.model_validate(
        {
            "method": "depo", "seed": np.int64(1), "rollouts": 128.0, "mixed_share": np.float32(0.5), "ece": math.nan,
            "log_loss": math.inf, "accuracy": ({"rollouts": np.int32(64), "accuracy": np.float64("nan")},),
            "history": [{"step": np.int64(1), "reward": math.nan}],
        }
    )  # fmt: skip
    assert (run.seed, run.rollouts, run.mixed_share, run.ece, run.log_loss) == (
        1,
        128,
        0.5,
        None,
        None,
    )
    assert run.accuracy == [AccuracyPoint(rollouts=64)]
    write_results([run], tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_results(tmp_path / "results.json") == [run]
    assert (
        run.series("reward") == ([], [])
        and run.curve("rollouts") == ([], [])
        and run.final_accuracy is None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixed_share": 1.5}, r"entry 1: mixed_share = 1.5: .*less than or equal to 1"),
        ({"rollouts": -1}, r"entry 1: rollouts = -1: .*greater than or equal to 0"),
        ({"rollouts": 1.5}, r"entry 1: rollouts = 1.5: .*valid integer"),
        ({"steps": True}, r"entry 1: steps = True: .*valid integer"),
        ({"ece": "0.1"}, r"entry 1: ece = '0.1': .*valid number"),
        ({"mixed_shar": 0.5}, r"entry 1: unknown field 'mixed_shar': did you mean 'mixed_share'\?"),
        ({"zzz": 0.5}, r"entry 1: unknown field 'zzz'$"),
        (
            {"accuracy_hole": 0.5},
            r"entry 1: unknown field 'accuracy_hole': did you mean 'accuracy_whole'\?",
        ),
        ({"accuracy_whole": 48.0}, r"entry 1: accuracy_whole = 48.0: .*less than or equal to 1"),
        ({"accuracy_by_source": {"a": 0.5}}, r"entry 1: accuracy_by_source.a = 0.5: "),
        (
            {"accuracy_by_source": {"a": {"end": 2}}},
            r"entry 1: accuracy_by_source.a.end = 2: .*less than or equal",
        ),
        (
            {"accuracy_by_source": {"a": {"begin": 0.5}}},
            r"entry 1: unknown field 'accuracy_by_source.a.begin'",
        ),
        ({"forgotten": "add2"}, r"entry 1: forgotten = 'add2': .*valid list"),
        ({"most_visits": 1.5}, r"entry 1: most_visits = 1.5: .*valid integer"),
        ({"unseen_share": -0.1}, r"entry 1: unseen_share = -0.1: .*greater than or equal to 0"),
        ({"method": ""}, r"entry 1: method = '': "),
        ({"seed": None}, r"entry 1: seed = None: "),
        ({"accuracy": [{"accuracy": 2}]}, r"entry 1: accuracy.0.accuracy = 2: "),
        ({"history": [{"reward": 1.0}]}, r"entry 1: history = .*entry 0 has no step"),
        ({"reliability": [{"predicted": 0.5}]}, r"entry 1: reliability.0.observed: Field required"),
        ({"seed": 0}, r"method 'grpo' with seed 0 is there twice"),
    ],
)
def test_bad_results_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(
        json.dumps([{"method": "grpo", "seed": 0}, {"method": "grpo", "seed": 1} | change])
    )
    with pytest.raises(DataError, match=rf"results\.json: {message}") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_forgotten_is_what_fell_by_more_than_a_point() -> None:
    ends = {"fell": 0.48, "held": 0.495, "rose": 0.9, "unknown": None}
    assert forgotten_sources(
        {n: SourceAccuracy(start=0.5, end=end) for n, end in ends.items()}
    ) == ["fell"]
    assert SourceAccuracy(start=0.5).change is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[{", "not JSON"),
        ("{}", "must be a list"),
        ('"x"', "must be a list"),
        ("[3]", "entry 0"),
    ],
)
def test_what_is_no_results_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_results(tmp_path / "results.json")
    with pytest.raises(DataError, match=r"nowhere\.json: cannot read the results"):
        read_results(tmp_path / "nowhere.json")


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_results([RunResult(method="grpo", seed=0)], path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="twice"):
        write_results([RunResult(method="grpo", seed=0)] * 2, path)
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(CheckpointError, match="No space left"):
        write_results([RunResult(method="dapo", seed=0)], path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["results.json"]
