"""``depo route`` from logs to decisions, and what it refuses."""

from __future__ import annotations

import io
import json
import os

import pytest

from depo_rl.cli import main
from routing_world import world, write_table


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    """Fitted and calibrated by the commands themselves."""
    room = tmp_path_factory.mktemp("room")
    table = write_table(room / "fit.jsonl", 300)
    new = write_table(room / "new.jsonl", 600, seed=1)
    assert (
        main([*_fit(table), "--cost", "small=1", "--cost", "large=5", "--out", str(room / "r")])
        == 0
    )
    assert main(["route", "calibrate", str(room / "r"), "--quality", "0.96", "--on", str(new)]) == 0
    return room / "r"


def _fit(table):
    return ["route", "fit", *_models(table)]


def _models(table):
    return ["--model", f"small={table}", "--model", f"large={table}"]


def _refused(capsys, *args):
    assert main([str(a) for a in args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("depo: ") and error.count("\n") == 1
    return error


def test_evaluate_prints_the_promised_keys(router, tmp_path, capsys):
    table = write_table(tmp_path / "t.jsonl", 500, seed=2)
    capsys.readouterr()
    figure = tmp_path / "curves.png"
    args = [*_models(table), "--by", "kind", "--figure", str(figure), "--json"]
    assert main(["route", "evaluate", str(router), *args]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("area", "paper_rule_area", "random_area", "oracle_area"):
        low, high = result[f"{name}_interval"]
        assert low <= result[name] <= high
    assert result["area"] > result["paper_rule_area"] > 0
    assert result["oracle_area"] >= result["area"]
    shares = list(result["share_within"].values())
    assert shares == sorted(shares) and set(result["share_within"]) == {"0.5", "1", "2", "5"}
    assert result["money"]["saved"]["5"] == pytest.approx(0.8 * result["share_within"]["5"])
    assert result["in_force"]["quality"] >= 0.96 * result["always"]["large"] - 0.03
    assert result["calibration"]["small"]["ece"] < 0.1
    assert set(result["table"]["small alone"]) >= {"add the", "avg", "kept"}
    assert result["table"]["large alone"]["kept"] == 0
    assert len(result["sweep"]) == 21 and figure.stat().st_size > 1000


def test_rows_that_were_learnt_from_are_told_and_never_calibrated_on(router, tmp_path, capsys):
    old = write_table(tmp_path / "old.jsonl", 300)
    capsys.readouterr()
    assert main(["route", "evaluate", str(router), *_models(old), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries_learnt_from"] == 300
    error = _refused(capsys, "route", "calibrate", router, "--quality", 0.9, "--on", old)
    assert "learnt from all 300 rows" in error


def test_outcome_logs_and_labelled_pools_are_joined_by_text(tmp_path, capsys):
    texts, score_PM = world(150)
    log = tmp_path / "small.jsonl"
    pool = tmp_path / "large.jsonl"
    log.write_text(
        "".join(
            json.dumps({"prompt": t, "n_correct": int(4 * s), "n_scored": 4}) + "\n"
            for t, s in zip(texts[:140], score_PM[:, 0].tolist(), strict=False)
        )
    )
    pool.write_text(
        "".join(
            json.dumps({"prompt": t, "pass_rate": s, "k": 8}) + "\n"
            for t, s in zip(texts, score_PM[:, 1].tolist(), strict=True)
        )
    )
    args = ["--model", f"small={log}", "--model", f"large={pool}", "--out", str(tmp_path / "r")]
    assert main(["route", "fit", *args, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["queries"], result["queries_left_out"]) == (140, 10)
    assert result["mean_score"]["small"] == pytest.approx(score_PM[:140, 0].mean())


def test_a_null_score_is_not_a_zero(tmp_path, capsys):
    table = write_table(tmp_path / "t.jsonl", 150)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[0]["small"] = None
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*_fit(table), "--out", str(tmp_path / "r"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 149


def test_decide_answers_line_by_line(router, capsys, monkeypatch):
    asked = [
        {"id": "a", "prompt": "prove the theorem about rings 5"},
        {"messages": [{"role": "user", "content": "add the numbers 7"}]},
    ]
    lines = "\n\n".join(map(json.dumps, asked)).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    capsys.readouterr()
    assert main(["route", "decide", str(router)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["model"], second["model"]) == ("a", "large", "small")
    assert set(first) == {"id", "model", "reason", "success", "gain", "threshold_version"}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": 1}\n')))
    assert "line 1: needs a text in prompt" in _refused(capsys, "route", "decide", router)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--model", "a=x"], "two models or more"),
        (["--model", "a=x", "--model", "a=y"], "'a' is there already"),
        (["--model", "a", "--model", "b=y"], "write it as NAME=LOG"),
        (["--model", "a=x", "--model", "b=y", "--cost", "c=1"], "no model 'c'"),
        (["--model", "a=x", "--model", "b=y", "--cost", "a=1"], "none for b"),
        (["--model", "a=x", "--model", "b=y", "--cost", "a=-1"], "0 or more"),
        (["--model", "a=nowhere.jsonl", "--model", "b=y"], "cannot be read"),
    ],
)
def test_fit_refuses_bad_options_in_one_line(tmp_path, capsys, args, why):
    error = _refused(capsys, "route", "fit", *args, "--out", tmp_path / "r")
    assert why in error and not os.path.exists(tmp_path / "r")


def test_fit_refuses_too_few_queries_and_a_folder_of_other_things(tmp_path, capsys):
    table = write_table(tmp_path / "t.jsonl", 60)
    assert "learns from 100 or more" in _refused(capsys, *_fit(table), "--out", tmp_path / "r")
    table = write_table(tmp_path / "t.jsonl", 120)
    assert "holds files but no router" in _refused(capsys, *_fit(table), "--out", tmp_path)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ([], "one of --quality"),
        (["--quality", "0.9", "--budget", "0.3"], "one of --quality"),
        (["--quality", "1.5"], "between 0 and 1"),
        (["--budget", "0"], "between 0 and 1"),
        (["--points", "2", "--confidence", "1"], "--confidence 1"),
    ],
)
def test_calibrate_asks_for_one_promise(router, tmp_path, capsys, args, why):
    new = write_table(tmp_path / "n.jsonl", 120, seed=4)
    assert why in _refused(capsys, "route", "calibrate", router, "--on", new, *args)


def test_calibrate_says_how_many_rows_it_needs(router, tmp_path, capsys):
    few = write_table(tmp_path / "few.jsonl", 15, seed=5)
    error = _refused(capsys, "route", "calibrate", router, "--quality", 0.99, "--on", few)
    assert "15 labelled rows cannot promise" in error and "are needed" in error


def test_more_than_two_models_are_routed_by_the_gain_of_the_last(tmp_path, capsys):
    table = write_table(tmp_path / "t.jsonl", 300)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text("".join(json.dumps(r | {"middle": r["large"]}) + "\n" for r in rows))
    models = [
        "--model",
        f"small={table}",
        "--model",
        f"middle={table}",
        "--model",
        f"large={table}",
    ]
    assert main(["route", "fit", *models, "--out", str(tmp_path / "r")]) == 0
    capsys.readouterr()
    assert main(["route", "evaluate", str(tmp_path / "r"), *models, "--json"]) == 0
    sweep = json.loads(capsys.readouterr().out)["sweep"]
    assert max(point["share"]["middle"] for point in sweep) > 0.2


def test_check_alarms_when_the_world_has_changed_and_not_before(router, tmp_path, capsys):
    same = write_table(tmp_path / "same.jsonl", 400, seed=6)
    capsys.readouterr()
    assert main(["route", "check", str(router), "--on", str(same), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alarm"] is False
    rows = [json.loads(line) for line in same.read_text().splitlines()]
    worse = tmp_path / "worse.jsonl"
    worse.write_text("".join(json.dumps(row | {"small": 0.0}) + "\n" for row in rows))
    assert main(["route", "check", str(router), "--on", str(worse), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["alarm"] is True


def test_help_of_the_group_names_its_commands(capsys):
    assert main(["route", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(
        name in out for name in ("fit", "evaluate", "calibrate", "check", "decide", "litellm")
    )
