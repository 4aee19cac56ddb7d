"""From the ``reward`` section to TRL reward functions, and a check that the data's own answers can
be judged."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...rewards.gold import Gold, read_gold
from ...rewards.math import gold_number
from ...validation import nearest
from .config import MathReward, PythonReward, RewardSettings, SoftOverlongReward, TrainConfig
from .data import PromptTable

RewardCallable = Callable[..., Any]
_CHECKED_ANSWERS = 64
_AS_COMPLETION = {"boxed": "\\boxed{%s}", "math_verify": "\\boxed{%s}", "gsm8k": "#### %s"}
_LONGEST_ANSWER = 500  # characters; a longer text is a solution, which no policy puts into a box


def build_rewards(config: TrainConfig) -> list[RewardCallable]:
    """One callable per entry of ``reward``, in its order. Raises ConfigError; starts no process."""
    functions = [_build(reward, f"reward.{i}", config) for i, reward in enumerate(config.reward)]
    names = [reward_name(function) for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"reward: {names.count(name)} functions are called {name!r}; names must differ in the logs"
            )
    if config.correct.reward is not None and config.correct.reward not in names:
        raise ConfigError(
            f"correct.reward = {config.correct.reward!r}: no such reward.{nearest(config.correct.reward, names)}"
        )
    return functions


def reward_name(function: RewardCallable) -> str:
    """The name TRL logs it under."""
    return str(getattr(function, "__name__", type(function).__name__))


def close_rewards(functions: Sequence[RewardCallable]) -> None:
    """Ends the worker processes of those that have some."""
    for function in functions:
        getattr(function, "close", lambda: None)()


def _build(reward: RewardSettings, where: str, config: TrainConfig) -> RewardCallable:
    if isinstance(reward, MathReward):
        from ...rewards import math_reward

        return math_reward(reward.kind, timeout_s=reward.timeout_s, n_workers=reward.n_workers)
    if isinstance(reward, SoftOverlongReward):
        longest = reward.max_completion_length or config.trl.get("max_completion_length") or 512
        if reward.cache > longest:
            raise ConfigError(
                f"{where}.cache = {reward.cache}: must be at most max_completion_length = {longest}"
            )
        from ...engines.trl.rewards import get_soft_overlong_punishment

        punishment: RewardCallable = get_soft_overlong_punishment(longest, reward.cache)
        return punishment
    return _python(reward, where)


def _python(reward: PythonReward, where: str) -> RewardCallable:
    function = find_function(reward.function, where)
    if reward.settings is not None:
        try:
            function = function(**reward.settings)
        except TypeError as error:
            raise ConfigError(
                f"{where}.settings: {reward.function} refuses them: {error}"
            ) from None
    if not callable(function):
        raise ConfigError(
            f"{where}.function = {reward.function!r}: gives {type(function).__name__}, not a function"
        )
    if not reward.in_workers:
        return function
    from ...rewards import in_workers

    return in_workers(
        function,
        extra_columns=reward.extra_columns,
        timeout_s=reward.timeout_s,
        n_workers=reward.n_workers,
    )


def find_function(address: str, where: str) -> RewardCallable:
    """``module:function`` or ``file.py:function``. Raises ConfigError if there is no such thing."""
    module_name, _, name = address.rpartition(":")
    module = _module(module_name, f"{where}.function = {address!r}")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [
                n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))
            ]
            raise ConfigError(
                f"{where}.function = {address!r}: no {part!r} there.{nearest(part, public)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"{where}.function = {address!r}: is a {type(found).__name__}, not a function"
        )
    return found  # type: ignore[no-any-return]


def _module(name: str, where: str) -> Any:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{where}: cannot be imported ({error}); a file is named as folder/file.py:function"
            ) from None
    if not Path(name).is_file():
        raise ConfigError(f"{where}: no such file")
    # A name of its own, so that rewards.py beside the configuration never hides an installed
    # module.
    spec = importlib.util.spec_from_file_location(f"depo_reward_{Path(name).stem}", name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    writes, sys.dont_write_bytecode = (
        sys.dont_write_bytecode,
        True,
    )  # a dry run leaves no __pycache__ behind
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"{where}: running the file fails: {type(error).__name__}: {error}"
        ) from None
    finally:
        sys.dont_write_bytecode = writes
    return module


def check_answers(
    config: TrainConfig,
    functions: Sequence[RewardCallable],
    table: PromptTable,
    held_out: PromptTable | None = None,
) -> dict[str, Any]:
    """Gives each verifier the data's own answers as a policy would write them.

    Returns for the plan, per verifier: how many were tried, judged and called correct, the first
    that was not, and how many rows gsm8k cannot judge. Raises DataError where an answer is of a
    form that no completion can match, or none is judged or correct, which means the wrong column or
    verifier.
    """
    found = {}
    for reward, function in zip(config.reward, functions, strict=True):
        if isinstance(reward, MathReward):
            for rows in (table, held_out) if held_out else (table,):
                _check_form(reward.kind, rows)
            found[reward_name(function)] = _judge_own(reward.kind, function, table)
    return found


def _check_form(kind: str, table: PromptTable) -> None:
    """Refuses an answer that is not a text, a number, or a list that the verifier can compare."""
    for i, row in enumerate(table.rows):
        gold = read_gold(row["answer"])
        where = f"{table.row_at(i)}: answer = {row['answer']!r:.60}"
        if gold is None:
            raise DataError(
                f"{where}: no completion can match it; reward {kind!r} needs a text, a number or a flat list of them: "
                "set data.columns.answer to the right column (a.b is field b of the mapping in column a)"
            )
        if kind == "gsm8k" and len(gold.parts) > 1:
            raise DataError(
                f"{where}: {len(gold.parts)} answers, and reward 'gsm8k' compares one number: use 'boxed' or "
                "'math_verify', which compare sets"
            )


def _judge_own(kind: str, function: RewardCallable, table: PromptTable) -> dict[str, Any]:
    tried = range(0, len(table.rows), max(1, len(table.rows) // _CHECKED_ANSWERS))[
        :_CHECKED_ANSWERS
    ]
    answers = [table.rows[i]["answer"] for i in tried]
    scores = function(
        prompts=[""] * len(answers), completions=[_said(kind, a) for a in answers], answer=answers
    )
    judged = [score for score in scores if score is not None]
    correct = sum(score >= 0.5 for score in judged)
    if not correct:
        what = "call correct" if judged else "judge"
        why = "would be 0" if judged else "would be unscorable"
        raise DataError(
            f"reward {kind!r} can {what} none of {len(answers)} answers (first: {answers[0]!r:.50}): "
            f"every reward {why}; set data.columns.answer to the right column, or another reward"
        )
    result: dict[str, Any] = {"answers": len(answers), "judged": len(judged), "correct": correct}
    if correct < len(answers):
        first = next(
            i for i, score in zip(tried, scores, strict=True) if score is None or score < 0.5
        )
        what = "not judged" if scores[tried.index(first)] is None else "not called correct"
        result["first_that_fails"] = (
            f"{table.row_at(first)}, {what}: {table.rows[first]['answer']!r:.50}"
        )
    if kind == "gsm8k":  # quick enough for all rows, not only those that were tried
        unscorable = [i for i, row in enumerate(table.rows) if gold_number(row["answer"]) is None]
        if unscorable:
            result["unscorable_rows"] = (
                f"{len(unscorable)} of {len(table.rows)}, first {table.row_at(unscorable[0])}"
            )
    return result


def _said(kind: str, answer: Any) -> str:
    """A completion with this answer as a policy would write it; an empty one where none would."""
    gold = read_gold(answer) or Gold("")
    if len(gold.text) > _LONGEST_ANSWER or "\n\n" in gold.text:
        return ""
    return _AS_COMPLETION[kind] % re.sub(r"(?<!\\)\$", "", gold.text)
