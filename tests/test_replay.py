"""``depo replay`` end to end: what is counted, what is judged, what is written, and bad input in
one line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depo_rl import Prompt, make_curriculum
from depo_rl.cli import main
from depo_rl.commands.replay.audit import SkipAuditor
from depo_rl.commands.replay.plan import ReplayPlan
from depo_rl.commands.replay.run import parse_seeds, parse_settings, run_replay
from depo_rl.commands.replay.simulate import simulate
from depo_rl.engines.replay import LabelledPoolEngine
from depo_rl.errors import ConfigError
from depo_rl.methods import METHODS
from depo_rl.outcomes.tables import LabelledPool
from depo_rl.report import RunResult, SkipAudit, read_results
from depo_rl.report.curves import wilson
from depo_rl.report.skips import pooled_audit
from depo_rl.selectors import MostLikelyMixed, PassRateWindow
from depo_rl.types import GroupOutcome, Settlement

DATA = Path(os.environ.get("DEPO_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no data set in {DATA} (set DEPO_DATA)")


def pool(n: int = 400, seed: int = 0) -> LabelledPool:
    """Prompts whose text tells their kind, hopeless, open or easy, and so their pass rate."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, size=n, p=[0.4, 0.3, 0.3])
    rates = np.choose(kinds, [0.0, rng.uniform(0.2, 0.8, n), 1.0])
    words = ("hopeless", "open", "easy")
    prompts = [
        Prompt(f"k{i}", f"{words[k]} {i}", "s", {"pass_rate": r})
        for i, (k, r) in enumerate(zip(kinds.tolist(), rates.tolist(), strict=True))
    ]
    return LabelledPool(tuple(prompts), rates)


def run(method: str, n: int = 32, steps: int = 20, seed: int = 0, **settings: Any) -> RunResult:
    source = pool()
    curriculum = make_curriculum(method, source.prompts, {"seed": seed, **settings})
    return simulate(curriculum, LabelledPoolEngine(source, seed), n, steps)


DEPO = {"band": "auto", "warmup_steps": 2}


def pool_file(folder: Path, n: int = 300) -> Path:
    rows = [{"prompt": p.text, "pass_rate": p.fields["pass_rate"]} for p in pool(n).prompts]
    path = folder / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_grpo_meets_the_expected_share_and_pays_for_each_group():
    result = run("grpo", steps=40)
    p = pool().rate_P
    expected = float(np.mean(1 - p**8 - (1 - p) ** 8))
    assert result.mixed_share == pytest.approx(expected, abs=0.04)
    assert result.groups == 40 * 32 and result.rollouts == 40 * 32 * 8
    assert result.distinct_prompts == 400  # three passes and a bit
    # not measured, never 0
    assert result.auc_mixed is result.ece is result.skip_audit is result.tokens is None
    assert result.history is not None and result.history[-1]["rollouts"] == result.rollouts


def test_breadth_stands_beside_the_share_of_mixed_groups():
    result = run("grpo", steps=25)  # two passes over 400 prompts
    assert (result.unseen_share, result.most_visits, result.effective_prompts) == (
        0.0,
        2,
        pytest.approx(400),
    )
    assert result.sources_per_batch == 1.0 and result.distinct_share == pytest.approx(400 / 640)
    assert result.series("unseen_share")[1] == pytest.approx(
        [max(1 - 32 * s / 400, 0) for s in range(1, 26)]
    )
    narrow = run("depo", steps=25, **DEPO)
    assert (narrow.unseen_share or 0) > 0.3 and (narrow.effective_prompts or 0) < 300
    assert narrow.distinct_prompts == pytest.approx(400 * (1 - (narrow.unseen_share or 0)))
    assert narrow.accuracy_whole is narrow.forgotten is None  # a replay learns nothing


def test_shares_add_up_and_the_history_agrees_with_the_total():
    result = run("depo", **DEPO)
    assert (result.mixed_share or 0) + (result.all_pass_share or 0) + (
        result.all_fail_share or 0
    ) == pytest.approx(1)
    steps, shares = result.series("mixed_share")
    assert steps == list(range(1, 21))
    assert np.mean(shares) == pytest.approx(result.mixed_share)


def test_dapo_pays_for_what_it_drops_and_fills_its_batches():
    result = run("dapo", steps=10)
    assert result.history is not None and result.rollouts is not None
    mixed = [row["mixed_share"] for row in result.history]
    spent = np.diff([0.0, *(row["rollouts"] or 0.0 for row in result.history)])
    assert all(share * paid / 8 >= 32 - 1e-6 for share, paid in zip(mixed, spent, strict=True))
    assert result.rollouts > 2 * 10 * 32 * 8


def test_dapo_stops_after_its_rounds_where_nothing_is_mixed():
    dead = LabelledPool(tuple(Prompt(str(i), str(i)) for i in range(64)), np.zeros(64))
    curriculum = make_curriculum("dapo", dead.prompts, {"max_rounds": 3})
    result = simulate(curriculum, LabelledPoolEngine(dead), 8, 2)
    assert result.groups == 2 * 3 * 8


def test_depo_finds_what_the_text_tells():
    assert (run("depo", **DEPO).mixed_share or 0) > 1.6 * (run("grpo").mixed_share or 1)


def test_the_same_seed_repeats_and_another_differs():
    def without_times(result: RunResult) -> dict[str, Any]:
        kept = result.model_dump(
            exclude={"seconds_selecting", "seconds_learning", "seconds_total", "seed"}
        )
        for row in kept["history"]:
            row.pop("seconds_selecting"), row.pop("seconds_learning")
        return kept

    first, again, other = (
        without_times(run("depo", steps=8, seed=seed, **DEPO)) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_replayed(method):
    source = pool(600)
    settings = METHODS[method].share({"warmup_steps": 1}, {})
    result = simulate(
        make_curriculum(method, source.prompts, settings), LabelledPoolEngine(source), 16, 4
    )
    assert result.steps == 4 and result.groups is not None and result.groups >= 64


def test_auditing_changes_nothing_that_is_chosen(monkeypatch):
    before = [
        run(m, steps=8, explore=0.1, warmup_steps=1).mixed_share
        for m in ("depo", "greso")
        if m in METHODS
    ]
    monkeypatch.setattr(SkipAuditor, "add", lambda *args: None)
    after = [
        run(m, steps=8, explore=0.1, warmup_steps=1).mixed_share
        for m in ("depo", "greso")
        if m in METHODS
    ]
    assert before == after


def settlement(key: str, because: str, mean: float, k: int) -> Settlement:
    return Settlement(GroupOutcome(key, k, 8), because, mean, 50.0, 0.0, 1.0, True)


def audit(selector: Any, batch: list[Settlement]) -> SkipAudit | None:
    auditor = SkipAuditor(8, 0)
    auditor.add(selector, [Prompt(s.outcome.key, "") for s in batch], batch)
    return auditor.result()


EXPLORED = [
    settlement("e1", "explored", 0.5, 4),  # would be chosen, mixed
    settlement("e2", "explored", 0.01, 1),  # would be skipped, and was mixed
    settlement("e3", "explored", 0.99, 8),  # would be skipped, rightly
    Settlement(
        GroupOutcome("e4", 0, 0, 8), "explored", 0.5, 50.0, 0.0, 1.0, False
    ),  # could not be judged
]
CHOSEN = [settlement(f"c{i}", "selected", 0.4 + i / 50, 4) for i in range(4)]


@pytest.mark.parametrize(
    "selector", [MostLikelyMixed(8), PassRateWindow(0.15, 0.85)], ids=["ranked", "window"]
)
def test_false_skips_are_the_mixed_ones_among_the_would_be_skipped(selector):
    found = audit(selector, EXPLORED + CHOSEN)
    assert found is not None
    assert (found.explored, found.explored_mixed, found.skipped, found.skipped_mixed) == (
        3,
        2,
        2,
        1,
    )
    assert found.rate == 0.5 and (found.low, found.high) == wilson(1, 2)


def test_a_warm_up_skips_nothing_and_is_not_audited():
    assert audit(MostLikelyMixed(8), list(EXPLORED)) is None
    assert run("depo", steps=3, **{**DEPO, "warmup_steps": 10}).skip_audit is None


def test_the_audit_of_a_run_counts_its_explored_groups():
    result = run("depo", steps=30, explore=0.2, **DEPO)
    assert result.skip_audit is not None and result.false_skip_rate is not None
    assert result.skip_audit.explored == pytest.approx(0.2 * 32 * 28, abs=7)
    expected = (run("grpo", steps=60).mixed_share or 0) * result.skip_audit.explored
    assert result.skip_audit.explored_mixed == pytest.approx(expected, rel=0.3)
    assert result.false_skip_rate < 0.25  # the text tells the kind
    pooled = pooled_audit([result, result])
    assert pooled is not None and pooled.skipped == 2 * result.skip_audit.skipped
    assert pooled.rate == result.false_skip_rate


def test_wilson_interval():
    assert wilson(0, 0) == (None, None)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = wilson(0, 10)
    assert low == 0.0 and high == pytest.approx(0.2775, abs=1e-4)


def test_settings_for_all_and_for_one_method():
    common, own = parse_settings(
        ["band=auto", "depo.warmup_steps=4", "window=[0.1, 0.9]", "depo.estimator.type=fused"]
    )
    assert common == {"band": "auto", "window": [0.1, 0.9]}
    assert own == {"depo": {"warmup_steps": 4, "estimator": {"type": "fused"}}}
    assert parse_settings(["estimator=fused", "estimator.gamma=0.1"])[0] == {
        "estimator": {"type": "fused", "gamma": 0.1}
    }
    assert parse_seeds("0, 2") == (0, 2)
    for wrong in ("band", "=1", "x={"):
        with pytest.raises(ConfigError, match="--set"):
            parse_settings([wrong])


def test_a_warm_up_longer_than_the_run_is_shortened_and_told(tmp_path):
    plan = ReplayPlan(
        pool_file(tmp_path), tmp_path / "out", ("depo",), prompts_per_step=16, steps=30
    )
    assert plan.config("depo", 0).warmup_steps == 3
    _, notes = run_replay(plan)
    assert any("warm-up of 3 steps instead of its own 100" in note for note in notes)
    kept = ReplayPlan(plan.file, plan.out, ("depo",), steps=30, settings={"warmup_steps": 50})
    assert kept.config("depo", 0).warmup_steps == 50


def test_what_a_reader_must_know_is_said(tmp_path):
    plan = ReplayPlan(
        pool_file(tmp_path), tmp_path / "out", ("polaris", "depo"), prompts_per_step=8, steps=3
    )
    _, notes = run_replay(plan)
    assert any(note.startswith("polaris: chooses by the very labels") for note in notes)
    assert not any("explores nothing" in note for note in notes)
    unexplored = ReplayPlan(
        plan.file, plan.out, ("depo",), (0,), 8, 8, 3, {"explore": 0.0, "warmup_steps": 1}
    )
    _, notes = run_replay(unexplored)
    assert any(note.startswith("depo: explores nothing") for note in notes)


def test_screened_groups_are_compared_by_what_a_mixed_one_costs(tmp_path):
    plan = ReplayPlan(
        pool_file(tmp_path), tmp_path / "out", ("grpo", "speed"), prompts_per_step=8, steps=6
    )
    (grpo, speed), notes = run_replay(plan)
    assert grpo.rollouts == 8 * (grpo.groups or 0) and 4 * (speed.groups or 0) < (
        speed.rollouts or 0
    )
    paid = [(r.rollouts or 0) / ((r.mixed_share or 0) * (r.groups or 0)) for r in (grpo, speed)]
    assert any(
        note.startswith("speed: ") and f"grpo {paid[0]:.1f}, speed {paid[1]:.1f}." in note
        for note in notes
    )
    _, notes = run_replay(ReplayPlan(plan.file, plan.out, ("grpo",), prompts_per_step=8, steps=2))
    assert not any("screened" in note for note in notes)


ARGS = ["--prompts-per-step", "16", "--steps", "6", "--set", "depo.warmup_steps=1"]


def test_the_command_writes_results_figures_and_a_page(tmp_path, capsys):
    out = tmp_path / "out"
    code = main(
        [
            "replay",
            str(pool_file(tmp_path)),
            "--out",
            str(out),
            *ARGS,
            "--seeds",
            "0,1",
            "--set",
            "explore=0.2",
        ]
    )
    said = capsys.readouterr()
    assert code == 0 and said.err == ""
    assert "depo" in said.out and "labelled pool" in said.out
    words = set(said.out.split())
    assert {"different", "never", "effective", "most", "sources"} <= words and "breadth" in said.out
    results = read_results(out / "results.json")
    assert [(r.method, r.seed) for r in results] == [
        (m, s) for m in ("grpo", "dapo", "depo") for s in (0, 1)
    ]
    assert {p.name for p in out.iterdir()} >= {
        "report.html",
        "group_shares.png",
        "reliability.png",
        "skipped.png",
    }
    page = (out / "report.html").read_text()
    assert "What was skipped" in page and "How widely was chosen" in page
    assert all(
        label in page
        for label in ("effective prompts", "most visits", "never chosen", "sources a batch")
    )
    assert all(
        r.effective_prompts and r.most_visits and r.unseen_share is not None for r in results
    )


def test_json_on_stdout(tmp_path, capsys):
    args = [
        "replay",
        str(pool_file(tmp_path)),
        "--out",
        str(tmp_path / "out"),
        *ARGS,
        "--seeds",
        "3",
        "--json",
    ]
    assert main([*args, "--methods", "grpo"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["methods"][0]["seeds"] == [3]
    measures = said["methods"][0]["measures"]
    for name in (
        "distinct_prompts",
        "unseen_share",
        "effective_prompts",
        "most_visits",
        "sources_per_batch",
    ):
        assert measures[name]["median"] is not None
    assert said["notes"] and said["out"] == str(tmp_path / "out")


def test_a_history_is_replayed_and_what_has_no_answer_is_counted(tmp_path):
    rows = [
        {"prompt": f"p{i}", "n_correct": (i + step) % 5, "group_size": 4, "step": step}
        for i in range(40)
        for step in (1, 5)
    ]
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = ReplayPlan(
        path, tmp_path / "out", ("grpo",), group_size=4, prompts_per_step=8, steps=9, max_gap=2
    )
    (result,), notes = run_replay(plan)
    assert result.unanswered == 2 * 8  # steps 8 and 9
    assert result.groups == 9 * 8
    assert any("16 of 72 groups had no answer" in note for note in notes)


BAD: list[tuple[str, list[str], list[str]]] = [
    ("unknown method", ["--methods", "dapoo"], ["'dapoo'", "'dapo'"]),
    ("method twice", ["--methods", "grpo,grpo"], ["each once"]),
    ("no method", ["--methods", ","], ["at least one"]),
    ("seeds that are none", ["--seeds", "one"], ["--seeds one"]),
    ("negative seed", ["--seeds", "-1"], ["seeds"]),
    ("batch larger than the pool", ["--prompts-per-step", "5000"], ["5000", "300"]),
    ("group of one", ["--group-size", "1"], ["--group-size"]),
    ("unknown setting", ["--set", "windwo=[0,1]"], ["'windwo'", "'window'"]),
    ("setting of a wrong type", ["--set", "explore=often"], ["explore = 'often'"]),
    ("setting with an option", ["--set", "seed=1"], ["--seeds"]),
    ("unknown column", ["--where", "policy=x"], ["'policy'", "'pass_rate'"]),
    ("no such row", ["--where", "prompt=x"], ["prompt=x", "no such row"]),
    ("no such label", ["--pass-rate-column", "pass_rat"], ["pass_rat", "'pass_rate'"]),
]


@pytest.mark.parametrize(
    ("options", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, options, said):
    out = tmp_path / "out"
    assert (
        main(
            [
                "replay",
                str(pool_file(tmp_path)),
                "--out",
                str(out),
                "--methods",
                "grpo",
                *ARGS,
                *options,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("depo: ")
    for part in said:
        assert part in error
    assert not out.exists()


def test_a_bad_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"prompt": "p", "pass_rate": 0.5}\n{"prompt": "q", "pass_rate": 7}\n')
    assert main(["replay", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == f"depo: {path}: row 2: pass_rate = 7: a pass rate is a number in [0, 1]\n"


@needs_data
def test_a_real_labelled_pool_gives_the_known_share(tmp_path):
    file = DATA / "pass_rates" / "deepscaler_qwen2.5-math-7b.parquet"
    (result,), _ = run_replay(ReplayPlan(file, tmp_path, ("grpo",), prompts_per_step=256, steps=20))
    spread = math.sqrt(0.46 * 0.54 / (256 * 20))
    # 46 % of a uniform draw are mixed
    assert result.mixed_share == pytest.approx(0.46, abs=4 * spread)


@needs_data
def test_a_real_history_is_answered_near_the_step(tmp_path):
    file = DATA / "histories" / "one_shot_rlvr_dsr1209.parquet"
    (result,), notes = run_replay(
        ReplayPlan(file, tmp_path, ("grpo",), prompts_per_step=128, steps=40)
    )
    assert result.unanswered == 0
    series = result.series("observed_mean")[1]
    assert np.mean(series[-10:]) > np.mean(series[:10]) + 0.02  # the policy of that run improved
    assert any("answers lay" in note for note in notes)
