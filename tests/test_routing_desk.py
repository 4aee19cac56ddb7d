"""A router at work: a model is named in time whatever fails; and the printed configuration."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
import yaml

from depo_rl.cli import main
from depo_rl.errors import ConfigError
from depo_rl.routing import Decision
from depo_rl.routing.desk import Desk, DeskSettings, expect_closed_door, headers
from routing_world import calibrated, fitted

HARD = [{"role": "user", "content": "prove the theorem about rings 12 case x"}]
EASY = [{"role": "user", "content": "add the numbers 12 case x"}]
LIMIT_S = 20.0  # these tests are not about time, but for one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return calibrated(tmp_path_factory.mktemp("router") / "r")


def _desk(folder, **more):
    return Desk(DeskSettings(folder, "large", **{"limit_s": LIMIT_S, **more}))


def _answer(desk, *args, **more):
    return asyncio.run(desk.answer(*args, **more))


def test_it_decides_as_the_router_and_tells_in_headers(folder):
    answer = _answer(_desk(folder), EASY)
    assert (answer.model, answer.decision.reason) == ("small", "within")
    told = headers(answer, observe=False)
    assert told["x-depo-model"] == "small" and told["x-depo-threshold-version"] == "1"
    assert float(told["x-depo-success"]) == pytest.approx(
        answer.decision.success["small"], abs=0.001
    )
    assert not any("add the numbers" in value for value in told.values())


def test_observe_only_lets_the_default_model_answer_but_takes_an_override(folder):
    desk = _desk(folder, observe=True)
    answer = _answer(desk, EASY)
    assert (answer.decision.model, answer.model) == ("small", "large")
    assert _answer(desk, HARD, override="small").model == "small"


def test_a_session_keeps_its_model_and_belongs_to_its_owner(folder):
    desk = _desk(folder)
    assert _answer(desk, HARD, session="s", owner="a").model == "large"
    kept = _answer(desk, EASY, session="s", owner="a")
    assert (kept.model, kept.decision.reason) == ("large", "sticky")
    assert _answer(desk, EASY, session="s", owner="b").model == "small"
    assert _answer(desk, EASY, override="small", session="s", owner="a").model == "small"
    assert _answer(desk, EASY, session="s", owner="a").model == "large"


def test_sessions_are_forgotten_before_they_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr("depo_rl.routing.desk._SESSIONS", 3)
    desk = _desk(folder)
    for number in range(9):
        _answer(desk, HARD, session=str(number))
    assert len(desk._sessions) == 3


class _Failing:
    models = ("small", "large")
    threshold = type("T", (), {"version": 7})

    def __init__(self, fault):
        self._fault = fault

    def route(self, messages):
        return self._fault()


def _raises():
    raise RuntimeError("the query: a secret")


@pytest.mark.parametrize(
    ("fault", "cause"), [(_raises, "error"), (lambda: time.sleep(0.3), "timeout")]
)
def test_a_router_that_raises_or_is_slow_leaves_the_query_to_the_default(
    folder, caplog, fault, cause
):
    desk = _desk(folder, limit_s=0.05)
    desk._router = _Failing(fault)
    answer = _answer(desk, EASY, session="s")
    assert (answer.model, answer.decision.reason) == ("large", f"fallback_{cause}")
    assert desk.fallbacks == {cause: 1} and "secret" not in caplog.text
    assert not desk._sessions, "a fallback binds nobody"


def test_a_router_that_hangs_is_not_given_more_and_more(folder, monkeypatch):
    monkeypatch.setattr("depo_rl.routing.desk._WAITING", 2)
    desk = _desk(folder, limit_s=0.01)
    desk._router = _Failing(lambda: time.sleep(0.5))

    async def many():
        return [await desk.answer(EASY) for _ in range(5)]

    assert [a.model for a in asyncio.run(many())] == ["large"] * 5
    assert desk.fallbacks == {"timeout": 2, "busy": 3}


@pytest.mark.parametrize("fault", ["missing", "torn", "other version", "no threshold"])
def test_without_a_router_everything_goes_to_the_default(tmp_path, caplog, fault):
    folder = tmp_path / "r"
    if fault != "missing":
        fitted(folder, n=100)
    if fault == "torn":
        (folder / "model.safetensors").write_bytes(b"x")
    if fault == "other version":
        (folder / "router.json").write_text('{"format": "depo-router-0"}')
    desk = _desk(folder)
    answer = _answer(desk, HARD)
    assert (answer.model, answer.decision.reason) == ("large", "fallback_unavailable")
    assert desk.fallbacks == {"unavailable": 1} and "no router" in caplog.text
    assert headers(answer, observe=False)["x-depo-threshold-version"] == "0"


def test_an_unknown_override_is_the_callers_error(folder):
    with pytest.raises(ConfigError, match="no model 'smal'"):
        _answer(_desk(folder), HARD, override="smal")


def test_settings_come_from_the_environment_and_wrong_ones_are_refused():
    given = {"DEPO_ROUTER_DIR": "r", "DEPO_ROUTER_DEFAULT": "large", "DEPO_ROUTER_MODE": "observe"}
    settings = DeskSettings.from_environment(given)
    assert (settings.observe, settings.default, settings.limit_s) == (True, "large", 0.05)
    for wrong in ({"MODE": "x"}, {"LIMIT_MS": "soon"}, {"LIMIT_MS": "0"}, {"DIR": ""}):
        with pytest.raises(ConfigError):
            DeskSettings.from_environment(
                given | {f"DEPO_ROUTER_{name}": value for name, value in wrong.items()}
            )


@pytest.mark.parametrize(
    ("arguments", "environment", "refused"),
    [
        (["litellm"], {}, True),
        (["litellm", "--host", "0.0.0.0"], {}, True),
        (["litellm", "--host=10.0.0.1"], {}, True),
        (["litellm", "--host", "127.0.0.1"], {}, False),
        (["litellm"], {"LITELLM_MASTER_KEY": "k"}, False),
        (["litellm"], {"DEPO_ROUTER_KEYED": "1"}, False),
    ],
)
def test_an_open_door_needs_a_master_key(arguments, environment, refused):
    if not refused:
        expect_closed_door(arguments, environment)
        return
    with pytest.raises(ConfigError, match="no master key"):
        expect_closed_door(arguments, environment)


PLAIN = """
model_list:
  - {model_name: small, litellm_params: {model: openai/small, api_base: "http://a"}}
  - {model_name: large, litellm_params: {model: openai/large, api_base: "http://b"}}
litellm_settings: {callbacks: [mine.callback], drop_params: true}
"""


def test_the_printed_configuration_is_the_given_one_with_ours_added(folder, tmp_path, capsys):
    plain = tmp_path / "plain.yaml"
    plain.write_text(PLAIN)
    assert main(["route", "litellm", str(folder), str(plain), "--observe"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(PLAIN)
    assert made["model_list"][:2] == given["model_list"]
    assert made["model_list"][2] == {**given["model_list"][1], "model_name": "depo"}
    callbacks = made["litellm_settings"].pop("callbacks")
    assert callbacks == ["mine.callback", "prometheus", "depo_rl.routing.gateway.callback"]
    assert made["litellm_settings"] == {"drop_params": True}
    assert made["general_settings"] == {"master_key": "os.environ/LITELLM_MASTER_KEY"}
    variables = made["environment_variables"]
    assert variables["DEPO_ROUTER_MODE"] == "observe" and variables["DEPO_ROUTER_KEYED"] == "0"
    assert os.path.isabs(variables["DEPO_ROUTER_DIR"])


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ("[]", [], "is a mapping with a model_list"),
        ("model_list: 3", [], "must be a list of models"),
        (PLAIN.replace("model_name: large", "model_name: larg"), [], "no model_name 'large'"),
        (PLAIN, ["--auto", "small"], "has a 'small' already"),
        (PLAIN, ["--default", "medium"], "--default medium: one of small, large"),
        (PLAIN.replace("litellm_settings: {", "litellm_settings: [{"), [], "not YAML"),
    ],
)
def test_a_configuration_that_cannot_serve_is_refused(folder, tmp_path, capsys, text, more, why):
    plain = tmp_path / "plain.yaml"
    plain.write_text(text)
    assert main(["route", "litellm", str(folder), str(plain), *more]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_a_decision_is_what_the_package_promises():
    assert set(Decision.__slots__) == {"model", "reason", "success", "gain", "threshold_version"}
