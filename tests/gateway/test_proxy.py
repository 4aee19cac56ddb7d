"""An unmodified LiteLLM proxy as a process, two back ends as processes, the official client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest

from world import KEY, SLOW_IS_FINE, SOURCE, free_port, proxy, running

HARD = "prove the theorem about rings 12 case x"
EASY = "add the numbers 12 case x"
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}


def _ask(text):
    return [{"role": "user", "content": text}]


def _raw(client, text, **more):
    options = {"model": "depo", "messages": _ask(text), **more}
    return client.chat.completions.with_raw_response.create(**options)


def _said(raw, stream):
    if not stream:
        return raw.parse().choices[0].message.content
    return "".join(event.choices[0].delta.content or "" for event in raw.parse() if event.choices)


@pytest.mark.parametrize("stream", [False, True])
def test_each_query_goes_to_the_model_that_was_decided_and_the_headers_say_so(world, stream):
    client = world.client()
    for text, model, reason in ((HARD, "large", "gain"), (EASY, "small", "within")):
        raw = _raw(client, text, stream=stream)
        assert _said(raw, stream) == f"from {model}"
        assert raw.headers["x-depo-model"] == model
        assert raw.headers["x-depo-reason"] == reason
        assert raw.headers["x-depo-threshold-version"] == "1"
        assert 0 <= float(raw.headers["x-depo-success"]) <= 1
        float(raw.headers["x-depo-gain"])


@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_fields_reach_the_back_end_as_they_were(world, stream):
    more = {"tools": [TOOL], "temperature": 0.3, "seed": 7, "stop": ["END"]}
    more |= {"extra_body": {"unheard_of": {"a": [1, 2]}}}
    _said(_raw(world.client(), f"{EASY} fields", stream=stream, **more), stream)
    sent = world.asked("small")[-1]
    assert sent["messages"] == _ask(f"{EASY} fields") and sent["tools"] == [TOOL]
    assert (sent["temperature"], sent["seed"], sent["stop"]) == (0.3, 7, ["END"])
    assert sent["unheard_of"] == {"a": [1, 2]}


def test_a_request_for_a_model_by_its_name_is_not_ours(world):
    raw = _raw(world.client(), HARD, model="small")
    assert _said(raw, False) == "from small" and "x-depo-model" not in raw.headers


def test_an_override_is_taken_and_an_unknown_one_is_the_clients_error(world):
    raw = _raw(world.client(), HARD, extra_headers={"x-depo-model": "small"})
    assert (_said(raw, False), raw.headers["x-depo-reason"]) == ("from small", "override")
    with pytest.raises(openai.BadRequestError, match="no model 'smal'"):
        _raw(world.client(), HARD, extra_headers={"x-depo-model": "smal"})


def test_a_session_stays_with_its_first_model(world):
    session = {"extra_headers": {"x-depo-session": "one"}}
    assert _raw(world.client(), HARD, **session).headers["x-depo-model"] == "large"
    later = _raw(world.client(), EASY, **session)
    assert (_said(later, False), later.headers["x-depo-reason"]) == ("from large", "sticky")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("prove the theorem about rings " * 6667, "gain"),  # 200,000 characters
        ([{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}], "no_text"),
        ([{"type": "text", "text": EASY}, {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}],
         "not_text_alone"),
    ],
)  # fmt: skip
def test_a_long_query_is_judged_and_one_that_is_no_text_goes_to_the_default(
    world, content, reason, stream
):
    raw = _raw(world.client(), content, stream=stream)
    assert _said(raw, stream) == "from large" and raw.headers["x-depo-reason"] == reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["REFUSE", "STALL", "CUT"])
def test_what_a_back_end_does_wrong_ends_as_litellm_ends_it_without_us(world, fault, stream):
    ends = []
    for model in ("small", "depo"):
        try:
            ends.append(
                _said(_raw(world.client(), f"{EASY} {fault}", model=model, stream=stream), stream)
            )
        except Exception as error:  # the client raises httpx's own in a stream
            ends.append(type(error).__name__)
    assert ends[0] == ends[1]
    print(f"{fault} stream={stream}: {ends[1]}")
    assert _said(_raw(world.client(), EASY), False) == "from small", "and the next is served"


def test_metrics_stand_beside_litellms_own(world):
    _raw(world.client(), EASY)
    text = world.metrics()
    assert 'depo_route_decisions_total{mode="route",model="small",reason="within"}' in text
    assert "depo_route_seconds_bucket" in text and "litellm_" in text


def test_neither_key_nor_query_is_in_a_log_or_header(world):
    raw = _raw(world.client(), "add the numbers of a very private matter")
    assert all("private" not in value and KEY not in value for value in raw.headers.values())
    assert "private" not in world.log() and KEY not in world.log()


def test_observe_only_decides_and_lets_the_default_model_answer(router, tmp_path):
    with running(tmp_path, router, ["--observe", *SLOW_IS_FINE]) as world:
        raw = _raw(world.client(), EASY)
        assert _said(raw, False) == "from large"
        assert (raw.headers["x-depo-model"], raw.headers["x-depo-mode"]) == ("small", "observe")


def test_without_an_estimator_everything_is_served_by_the_default_and_counted(
    world, router, tmp_path
):
    torn = shutil.copytree(router, tmp_path / "r")
    (torn / "model.safetensors").write_bytes(b"torn")
    config = (world.folder / "routed.yaml").read_text().replace(str(router), str(torn))
    (tmp_path / "torn.yaml").write_text(config)
    with proxy(tmp_path, tmp_path / "torn.yaml") as without:
        for stream in (False, True):
            raw = _raw(without.client(), EASY, stream=stream)
            assert _said(raw, stream) == "from large"
            assert raw.headers["x-depo-reason"] == "fallback_unavailable"
        assert 'depo_route_fallbacks_total{cause="unavailable"} 2.0' in without.metrics()


def test_an_open_door_without_a_master_key_is_refused(world):
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    environment.pop("LITELLM_MASTER_KEY", None)
    command = [str(Path(sys.executable).with_name("litellm")), "--config"]
    command += [str(world.folder / "routed.yaml"), "--port", str(free_port())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "no master key is set" in done.stdout + done.stderr


def test_a_wrong_key_is_refused_by_litellm(world):
    request = urllib.request.Request(
        f"{world.url}/v1/models", headers={"authorization": "Bearer x"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)
