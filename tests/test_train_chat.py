"""Chat prompts of `depo train`: the policy reads what the file holds, or the row is refused by its
number."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

from transformers import AutoTokenizer

from depo_rl.cli import main
from depo_rl.commands.train.chat import left_out
from depo_rl.commands.train.config import DataSettings
from depo_rl.commands.train.data import load_prompts, to_dataset
from depo_rl.engines.trl import DEPOTrainer
from depo_rl.errors import DataError
from test_train_cli import settings, write_run
from trl_toys import saved_policy

# torch, transformers and TRL warn about each other
pytestmark = pytest.mark.filterwarnings("ignore")

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
OTHER = {
    "id": "c2",
    "type": "function",
    "function": {"name": "add", "arguments": {"x": [1, None], "y": {"z": 0.5}}},
}
TOOLS = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "2"},
    {"role": "user", "content": "so?", "name": "ann"},
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}\n"
    "{% endfor %}a:"
)


def load(folder: Path, prompts: list[Any], **more: Any) -> Any:
    rows = [{"prompt": prompt, "answer": "2"} | more for prompt in prompts]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_prompts(DataSettings.model_validate({"path": str(folder / "train.jsonl")}))


def test_every_key_of_a_message_reaches_the_data_set(tmp_path: Path) -> None:
    other = copy.deepcopy(TOOLS)
    other[1]["tool_calls"] = [OTHER]
    other[1]["reasoning_content"] = "hm"
    plain = [{"role": "user", "content": "2+2="}]
    table = load(tmp_path, [TOOLS, other, plain])
    assert [row["prompt"] for row in table.rows] == [TOOLS, other, plain]
    assert [row["prompt"] for row in to_dataset(table)] == [
        TOOLS,
        other,
        plain,
    ]  # without the keys of other rows


def test_two_chats_that_differ_in_a_call_alone_are_two_prompts(tmp_path: Path) -> None:
    other = copy.deepcopy(TOOLS)
    other[1]["tool_calls"] = [OTHER]
    assert len(load(tmp_path, [TOOLS, other]).rows) == 2
    with pytest.raises(DataError, match="row 2 repeats row 1"):
        load(tmp_path, [TOOLS, TOOLS])


def test_nulls_of_a_parquet_file_are_absent_keys(tmp_path: Path) -> None:
    other = copy.deepcopy(TOOLS)
    other[1]["tool_calls"] = [CALL | {"function": {"name": "mul", "arguments": {"b": 3}}}]
    pq.write_table(
        pa.Table.from_pylist([{"prompt": p, "answer": "2"} for p in (TOOLS, other)]),
        tmp_path / "t.parquet",
    )
    table = load_prompts(DataSettings.model_validate({"path": str(tmp_path / "t.parquet")}))
    assert [row["prompt"] for row in table.rows] == [TOOLS, other]


PARTS = [
    ([{"type": "text", "text": "1+1="}], "1+1="),
    ([{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}], "1+1="),
    ([{"type": "input_text", "text": "1+1="}], "1+1="),
    ([{"type": "text", "text": "1+1=", "image": None}], "1+1="),
    (["1+1="], "1+1="),
    ([{"text": "1+1="}], "1+1="),
]


@pytest.mark.parametrize("content, text", PARTS)
def test_parts_of_text_become_their_text(tmp_path: Path, content: Any, text: str) -> None:
    (row,) = load(
        tmp_path, [[{"role": "system", "content": content}, {"role": "user", "content": content}]]
    ).rows
    assert [message["content"] for message in row["prompt"]] == [text, text]


def test_a_chat_that_stands_as_json_in_a_text_is_a_chat(tmp_path: Path) -> None:
    assert load(tmp_path, [json.dumps(TOOLS)]).rows[0]["prompt"] == TOOLS
    for text in ("[1, 2]: what is its length?", '["role"] is a list of', '{"role": 1}'):
        assert load(tmp_path, [text]).rows[0]["prompt"] == [{"role": "user", "content": text}]
    for text in (str(TOOLS), "[{'role': 'user', 'content': '1'} {'role': 'user'}]"):
        with pytest.raises(
            DataError, match=r"train.jsonl row 1, .*is a chat as a text, but not JSON .*json.dumps"
        ):
            load(tmp_path, [text])


def ask(content: Any = "1+1=", **keys: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} | keys]


REFUSED = {
    "image": (
        ask([{"type": "text", "text": "?"}, {"type": "image", "image": "a.png"}]),
        "message 1.*type 'image'",
    ),
    "image_url": (
        ask([{"type": "image_url", "image_url": {"url": "a"}}]),
        "message 1.*type 'image_url'",
    ),
    "audio": (ask([{"type": "input_audio", "input_audio": {}}]), "message 1.*type 'input_audio'"),
    "part without text": (ask([{"type": "text"}]), "message 1.*type 'text'"),
    "part of no type": (ask([3]), "message 1.*type 'int'"),
    "number": (ask(3), "message 1: content must be a text or a list of parts, got int"),
    "mapping": (ask({"text": "1"}), "message 1: content must be .* got dict"),
    "no role": ([{"content": "1"}], "message 1: has no role .it has content"),
    "ShareGPT": ([{"from": "human", "value": "1"}], "message 1: has no role .it has from, value"),
    "role of another type": ([{"role": 1, "content": "1"}], "message 1: has no role"),
    "empty role": ([{"role": " ", "content": "1"}], "message 1: has no role"),
    "nothing": (
        [*ask(), {"role": "assistant"}, *ask()],
        "message 2: has neither content nor tool_calls",
    ),
    "null": (
        [*ask(), {"role": "assistant", "content": None}, *ask()],
        "message 2: has neither content nor",
    ),
    "no message": ([*ask(), "1+1="], "message 2: must be a mapping with role and content, got str"),
    "ends in a call": (TOOLS[:2], "ends in a tool call"),
}


@pytest.mark.parametrize("prompt, says", REFUSED.values(), ids=list(REFUSED))
def test_what_a_text_model_cannot_read_is_refused_with_row_and_message(
    tmp_path: Path, prompt: Any, says: str
) -> None:
    with pytest.raises(DataError, match=f"^train.jsonl row 2, column 'prompt'.*{says}") as error:
        load(tmp_path, [ask("0+0="), prompt])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column, value, says",
    [
        ("images", ["a.png"], "row 1: column 'images' holds an image"),
        ("image", "a.png", "row 1: column 'image' holds an image"),
        (
            "tools",
            [{"type": "function", "function": {"name": "add"}}],
            "row 1: column 'tools' holds tools",
        ),
    ],
)
def test_columns_that_the_policy_would_not_be_shown_are_refused(
    tmp_path: Path, column: str, value: Any, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        load(tmp_path, [ask()], **{column: value})
    # else TRL takes the data set for one of images
    assert column not in load(tmp_path, [ask()], **{column: []}).rows[0]


def write(folder: Path, template: str, chats: list[Any]) -> Path:
    saved_policy(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template)
    config = settings(str(folder / "model"))
    config["data"] = {"path": "train.jsonl"}
    config["reward"] = [{"kind": "boxed", "n_workers": 1}]
    return write_run(folder, config, [{"prompt": chat, "answer": "2"} for chat in chats])


def chats(n: int) -> list[Any]:
    return [[{"role": "user", "content": f"{i}+1="}, *TOOLS[1:]] for i in range(n)]


def test_a_run_with_tool_calls_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = DEPOTrainer._tokenize_prompts
    run = write(tmp_path, TEMPLATE, chats(6))
    assert main(["train", str(run), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    whole = 'u:0+1=\na:add{"a": 1}\nt:2\nu:so?\na:'
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert plan["data"]["longest_prompt_tokens"] == len(tokenizer(whole)["input_ids"])
    read: list[Any] = []

    def tokenize(self: Any, prompts: list[Any]) -> Any:
        read.extend(prompts)
        return stock(self, prompts)

    monkeypatch.setattr(DEPOTrainer, "_tokenize_prompts", tokenize)
    assert main(["train", str(run), "trl.max_steps=1"]) == 0
    assert read and all(prompt in chats(6) for prompt in read)


@pytest.mark.parametrize(
    "template, says",
    [
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "leaves out the tool call 'add' of message 2",
        ),
        (
            TEMPLATE.replace("m['content'] or ''", "'' if m.role == 'tool' else m.content"),
            "result in message 3",
        ),
        ("{{ raise_exception('no tools here') }}", "refuses the prompt .no tools here"),
    ],
)
def test_a_template_that_would_show_another_conversation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, says: str
) -> None:
    plain = [[{"role": "user", "content": "1"}]] if "raise" not in template else []
    assert main(["train", str(write(tmp_path, template, [*plain, *chats(6)])), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"train.jsonl row {1 + len(plain)}: the model's chat template" in line
    assert says.replace(".no", "(no") in line


def test_left_out_sees_texts_that_a_template_writes_as_json() -> None:
    prompt = [{"role": "tool", "content": 'say "2"\n'}]
    assert left_out(prompt, json.dumps({"output": 'say "2"'})) is None
    assert left_out(prompt, "say 2") == "the tool's result in message 1"
    assert (
        left_out([{"role": "assistant", "tool_calls": [{"name": "add"}], "content": ""}], "add")
        is None
    )
    assert left_out("a plain text", "") is None
