"""From the ``reward`` section to TRL reward functions, and a check that the data's own answers can be judged."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...validation import nearest
from .config import MathReward, PythonReward, RewardSettings, SoftOverlongReward, TrainConfig

RewardCallable = Callable[..., Any]
_CHECKED_ANSWERS = 64
_AS_COMPLETION = {"boxed": "\\boxed{%s}", "math_verify": "\\boxed{%s}", "gsm8k": "#### %s"}


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
            raise ConfigError(f"{where}.cache = {reward.cache}: must be at most max_completion_length = {longest}")
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
            raise ConfigError(f"{where}.settings: {reward.function} refuses them: {error}") from None
    if not callable(function):
        raise ConfigError(f"{where}.function = {reward.function!r}: gives {type(function).__name__}, not a function")
    if not reward.sandbox:
        return function
    from ...rewards import sandboxed

    return sandboxed(
        function, extra_columns=reward.extra_columns, timeout_s=reward.timeout_s, n_workers=reward.n_workers
    )


def find_function(address: str, where: str) -> RewardCallable:
    """``module:function`` or ``file.py:function``. Raises ConfigError if there is no such thing."""
    module_name, _, name = address.rpartition(":")
    module = _module(module_name, f"{where}.function = {address!r}")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
            raise ConfigError(f"{where}.function = {address!r}: no {part!r} there.{nearest(part, public)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where}.function = {address!r}: is a {type(found).__name__}, not a function")
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
    # A name of its own, so that rewards.py beside the configuration never hides an installed module.
    spec = importlib.util.spec_from_file_location(f"depo_reward_{Path(name).stem}", name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a dry run leaves no __pycache__ behind
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{where}: running the file fails: {type(error).__name__}: {error}") from None
    finally:
        sys.dont_write_bytecode = writes
    return module


def check_answers(config: TrainConfig, functions: Sequence[RewardCallable], answers: Sequence[Any]) -> dict[str, Any]:
    """Gives each verifier the data's own answers as completions; none judged at all means the wrong column or verifier.

    Returns for the plan: how many were tried, judged and called correct, per verifier. Raises DataError.
    """
    step = max(1, len(answers) // _CHECKED_ANSWERS)
    sample = list(answers[::step][:_CHECKED_ANSWERS])
    found = {}
    for reward, function in zip(config.reward, functions, strict=True):
        if not isinstance(reward, MathReward):
            continue
        completions = [_AS_COMPLETION[reward.kind] % answer for answer in sample]
        scores = function(prompts=[""] * len(sample), completions=completions, answer=sample)
        judged = [score for score in scores if score is not None]
        if not judged:
            raise DataError(
                f"reward {reward.kind!r} can judge none of {len(sample)} answers (first: {sample[0]!r:.50}): "
                "every reward would be unscorable; set data.columns.answer to the right column, or another reward"
            )
        found[reward_name(function)] = {
            "answers": len(sample), "judged": len(judged), "correct": sum(score >= 0.5 for score in judged),
        }  # fmt: skip
    return found
