"""``gate`` is a setting of its own: any method that chooses before the rollout can filter after it
as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core_world import build, make_prompts
from depo_rl import METHODS, GroupOutcome, methods
from depo_rl.cli import main
from depo_rl.errors import ConfigError
from depo_rl.gates import AdmitAll, DynamicSampling, HighVariance, Screening
from depo_rl.outcomes import read_log
from depo_rl.selectors import Uniform
from test_replay import pool

OWN = {"dapo": DynamicSampling, "greso": DynamicSampling, "vcrl": HighVariance, "speed": Screening}
SMALL = {"type": "fused", "n_buckets": 2**10, "n_random": 16}
COUNTS = [(0, 8, 0), (8, 8, 0), (1, 8, 0), (4, 8, 0), (0, 0, 8)]  # right, scored, failed


def admitted(method: str, **config: Any) -> list[bool]:
    """Of groups all wrong, all right, hardly mixed, half right, and not scored at all."""
    curriculum = build(method, make_prompts([40]), config)
    prompts = curriculum.propose(len(COUNTS))
    outcomes = [GroupOutcome(p.key, *counts) for p, counts in zip(prompts, COUNTS, strict=True)]
    settled = [s.admitted for s in curriculum.settle(outcomes)]
    counts = curriculum.metrics()
    assert (counts["admitted"], counts["rejected"], counts["failed"]) == (
        sum(settled),
        4 - sum(settled),
        1,
    )
    return settled


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_method_has_its_own_gate_unless_told(name: str) -> None:
    assert type(build(name, make_prompts([40])).gate) is OWN.get(name, AdmitAll)


@pytest.mark.parametrize("method", ["depo+", "depo", "mopps", "dapo"])
def test_the_gate_says_what_is_admitted_whatever_the_method(method: str) -> None:
    config = {"estimator": SMALL} if method == "depo+" else {}
    assert admitted(method, gate="none", **config) == [True, True, True, True, False]
    assert admitted(method, gate="dynamic", **config) == [False, False, True, True, False]
    assert admitted(method, gate="high_variance", **config) == [False, False, False, True, False]
    assert admitted(method, gate="high_variance", min_variance=0.0, **config) == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_gate_that_replaces_groups_may_take_rounds_and_none_takes_one() -> None:
    prompts = make_prompts([40])
    assert build("depo", prompts, {"gate": "dynamic", "max_rounds": 3}).gate.max_rounds == 3
    plain = build("dapo", prompts, {"gate": "none", "max_rounds": 3})
    assert plain.gate.max_rounds == 1 and isinstance(plain.selector, Uniform)


@pytest.mark.parametrize("gate", ["none", "dynamic", "high_variance"])
def test_speed_keeps_its_own_and_refuses_another(gate: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'speed', gate = '{gate}': .*own \(Screening\): leave gate out"
    ) as error:
        build("speed", make_prompts([40]), {"gate": gate})
    assert "\n" not in str(error.value)


def test_a_method_of_ones_own_that_does_not_heed_the_setting_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = methods.Method("mine", "mine", {"estimator": "constant"}, gate=lambda config: AdmitAll())
    monkeypatch.setattr(methods, "METHODS", methods.METHODS | {"mine": own})
    methods.make_curriculum("mine", make_prompts([8]), {"gate": "none"})
    with pytest.raises(ConfigError, match=r"'mine', gate = 'dynamic': .*own \(AdmitAll\)"):
        methods.make_curriculum("mine", make_prompts([8]), {"gate": "dynamic"})


def test_an_unknown_gate_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"gate = 'dynamc': .*'none', 'dynamic' or 'high_variance'.*"
    ) as error:
        build("depo+", make_prompts([40]), {"gate": "dynamc"})
    assert "\n" not in str(error.value)


def write_pool(folder: Path) -> Path:
    rows = [{"prompt": p.text, "pass_rate": p.fields["pass_rate"]} for p in pool(300).prompts]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pool.parquet")
    return folder / "pool.parquet"


def replay(folder: Path, name: str, *options: str) -> dict[str, dict[str, Any]]:
    shared = [
        "--prompts-per-step",
        "16",
        "--steps",
        "6",
        "--seeds",
        "0",
        "--out",
        str(folder / name),
        "--json",
    ]
    assert main(["replay", str(write_pool(folder)), *shared, *options]) == 0
    return {run["method"]: run for run in json.loads((folder / name / "results.json").read_text())}


def test_replay_chooses_before_and_filters_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Choosing alone leaves dead groups in a batch; with the gate there are none, for less than
    dapo pays."""
    alone = replay(tmp_path, "alone", "--methods", "dapo,depo+")
    both = replay(tmp_path, "both", "--methods", "dapo,depo+", "--set", "depo+.gate=dynamic")
    assert alone["depo+"]["groups"] == 6 * 16 and alone["dapo"] == {
        **both["dapo"],
        **times(alone["dapo"]),
    }
    for run in (both["dapo"], both["depo+"]):
        paid = [0, *(row["rollouts"] / 8 for row in run["history"])]
        mixed = [
            row["mixed_share"] * (b - a)
            for row, a, b in zip(run["history"], paid, paid[1:], strict=False)
        ]
        assert min(mixed) >= 16 - 1e-6
    assert 6 * 16 < both["depo+"]["groups"] < both["dapo"]["groups"]
    assert both["depo+"]["mixed_share"] > 1.3 * both["dapo"]["mixed_share"]


def test_replay_s_outcome_log_is_what_was_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row a group, with what made it likely; it can be replayed in its turn."""
    given = [
        "--methods",
        "grpo,depo+,mopps",
        "--outcomes",
        "--set",
        "depo+.gate=dynamic",
        "--set",
        "temperature=1",
    ]
    runs = replay(tmp_path, "out", *given)
    rows = {name: list(read_log(tmp_path / "out" / f"outcomes-{name}-0.jsonl")) for name in runs}
    for name, run in runs.items():
        assert len(rows[name]) == run["groups"] and {row.step for row in rows[name]} == set(
            range(1, 7)
        )
        assert sum(0 < row.n_correct < 8 for row in rows[name]) == pytest.approx(
            run["mixed_share"] * run["groups"]
        )
    assert {row.inclusion for row in rows["grpo"]} == {1.0} and {
        row.inclusion for row in rows["mopps"]
    } == {None}
    drawn = [row.inclusion for row in rows["depo+"] if row.chosen_because == "selected"]
    assert None not in drawn and len(set(drawn)) > 10
    assert all(row.admitted == (0 < row.n_correct < 8) for row in rows["depo+"])
    again = [
        "--methods",
        "grpo",
        "--prompts-per-step",
        "4",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "again"),
    ]
    assert main(["replay", str(tmp_path / "out" / "outcomes-grpo-0.jsonl"), *again]) == 0
    replay(tmp_path, "out", *given)
    assert len(read_log(tmp_path / "out" / "outcomes-grpo-0.jsonl")) == runs["grpo"]["groups"], (
        "begun anew"
    )


def times(run: dict[str, Any]) -> dict[str, Any]:
    """What differs between two equal runs: their seconds."""
    return {
        name: value
        for name, value in run.items()
        if name.startswith("seconds") or name == "history"
    }


def test_replay_refuses_a_gate_for_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_pool(tmp_path))
    assert (
        main(
            [
                "replay",
                path,
                "--methods",
                "speed",
                "--set",
                "gate=dynamic",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert err.startswith("depo: method 'speed', gate = 'dynamic'") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
