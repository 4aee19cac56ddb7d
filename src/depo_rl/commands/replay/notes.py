"""What a reader of a replay must know to judge its numbers, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...methods import get_method
from ...outcomes.tables import GroupHistory, LabelledPool, Source
from ...report import RunResult
from .plan import ReplayPlan


def first_notes(plan: ReplayPlan, source: Source) -> list[str]:
    """What the numbers rest on."""
    kind = "a labelled pool: outcomes are drawn from its pass rates, the policy stands still"
    if isinstance(source, GroupHistory):
        kind = (
            f"a history of {sum(map(len, source.visits.values())):,} groups: an outcome is that of the visit whose "
            "step is nearest; the policy improves as it did then, whatever is chosen here"
        )
    notes = [
        f"{plan.file.name} is {kind}. {len(source.prompts):,} prompts, {plan.steps:,} steps of "
        f"{plan.prompts_per_step:,} groups of {plan.group_size}. No accuracy comes of it: a replay shows what methods "
        "choose and pay, not what a policy learns, nor what it forgets of what is never chosen. Mixed groups found by "
        "returning to few prompts may teach little: judge them with the breadth beside them.",
        *source.notes,
    ]
    for method in plan.methods:
        config = plan.configs[method]
        usual = get_method(method).config().warmup_steps
        given = plan.settings.keys() | plan.method_settings.get(method, {}).keys()
        if "warmup_steps" not in given and config.warmup_steps < usual:
            notes.append(
                f"{method}: a warm-up of {config.warmup_steps} steps instead of its own {usual}, to leave steps to "
                f"filter in; set it with --set {method}.warmup_steps=N."
            )
    told = [m for m in plan.methods if m == "polaris" or plan.configs[m].estimator.type == "oracle"]
    if told and isinstance(source, LabelledPool):
        notes.append(
            f"{', '.join(told)}: chooses by the very labels that outcomes are drawn from, an upper bound."
        )
    return notes


def answers(
    method: str, results: Sequence[RunResult], engines: Sequence[Mapping[str, float]]
) -> str:
    """How well a history could answer one method, over its seeds."""
    unanswered = sum(r.unanswered or 0 for r in results)
    groups = sum(r.groups or 0 for r in results)
    gaps = [engine["mean_gap"] for engine in engines if not math.isnan(engine["mean_gap"])]
    apart = f"{sum(gaps) / len(gaps):.1f}" if gaps else "-"
    return (
        f"{method}: {unanswered:,} of {groups:,} groups had no answer in the history; answers lay {apart} steps from "
        f"the simulated step on average, at most {max(engine['largest_gap'] for engine in engines):.0f}."
    )


def unexplored(plan: ReplayPlan, results: Sequence[RunResult]) -> list[str]:
    """Why the false skips of methods that predict could not be measured."""
    blind = dict.fromkeys(
        r.method
        for r in results
        if r.auc_mixed is not None
        and "explore" in get_method(r.method).settings
        and not r.explored_share
    )
    asked = [name for name in blind if plan.configs[name].explore]
    unasked = [name for name in blind if name not in asked]
    notes = []
    if unasked:
        notes.append(
            f"{', '.join(unasked)}: explores nothing, so that its false skips cannot be measured; --set explore=0.05 "
            "lets 5 % of the groups be chosen whatever the prediction."
        )
    for name in asked:
        share = plan.configs[name].explore
        notes.append(
            f"{name}: with explore = {share:g}, one group in {1 / share:.0f}, these are too few groups after the "
            "warm-up to explore one: more steps, or more groups a step, measure its false skips."
        )
    return notes


def screened(results: Sequence[RunResult], group_size: int) -> list[str]:
    """What to compare where a method left groups unfinished: not shares of groups, which are not of
    one size."""
    names = dict.fromkeys(
        r.method for r in results if (r.rollouts or 0) < (r.groups or 0) * group_size
    )
    if not names:
        return []
    paid = []
    for method in dict.fromkeys(r.method for r in results):
        runs = [r for r in results if r.method == method]
        mixed = sum((r.mixed_share or 0.0) * (r.groups or 0) for r in runs)
        paid.append(
            f"{method} {sum(r.rollouts or 0 for r in runs) / mixed:.1f}" if mixed else f"{method} -"
        )
    return [
        f"{', '.join(names)}: a prompt that is screened out counts as a group with the few completions it got, so that "
        f"shares of groups do not compare; rollouts per mixed group do: {', '.join(paid)}."
    ]
