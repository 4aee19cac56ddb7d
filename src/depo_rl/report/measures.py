"""What a report can say of a run: one ``Measure`` a row of the page, a column of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """name: in JSON, of a ``RunResult`` or derived. unit: "share", "count", "mean" (of counts),
    "seconds" or "number".

    ratio: whether a method's median over a baseline's says something.
    """

    name: str
    label: str
    unit: str
    meaning: str
    ratio: bool = False


MEASURES = (
    Measure(
        "accuracy_whole",
        "accuracy, whole pool",
        "share",
        "held-out, at the end; sources weighted as in the pool",
    ),
    Measure(
        "pass_at_8_whole", "pass@8, whole pool", "share", "one of 8 answers is right, at the end"
    ),
    Measure(
        "accuracy_at_budget",
        "accuracy at equal cost",
        "share",
        "held-out accuracy, all having spent alike",
        True,
    ),
    Measure(
        "final_accuracy",
        "final accuracy",
        "share",
        "held-out accuracy at the last evaluation",
        True,
    ),
    Measure(
        "rollouts_to_target",
        "rollouts to target",
        "count",
        "completions sampled until the target accuracy",
        True,
    ),
    Measure(
        "tokens_to_target",
        "tokens to target",
        "count",
        "completion tokens until the target accuracy",
        True,
    ),
    Measure(
        "seconds_to_target",
        "time to target",
        "seconds",
        "wall-clock time until the target accuracy",
        True,
    ),
    Measure("rollouts", "rollouts", "count", "completions sampled in the whole run", True),
    Measure("tokens", "tokens", "count", "completion tokens in the whole run", True),
    Measure("seconds_total", "total time", "seconds", "wall-clock time of the whole run", True),
    Measure(
        "mixed_share",
        "mixed groups",
        "share",
        "groups with right and wrong answers: the ones that teach",
        True,
    ),
    Measure(
        "all_pass_share",
        "all right",
        "share",
        "groups whose answers were all right: paid for, teach nothing",
    ),
    Measure(
        "all_fail_share",
        "all wrong",
        "share",
        "groups whose answers were all wrong: paid for, teach nothing",
    ),
    Measure(
        "distinct_prompts", "different prompts", "count", "that were chosen; the rest are repeats"
    ),
    Measure("unseen_share", "never chosen", "share", "prompts of the pool that no batch had"),
    Measure(
        "effective_prompts",
        "effective prompts",
        "count",
        "as many, visited equally often, would be as varied",
    ),
    Measure("most_visits", "most visits", "count", "of one prompt"),
    Measure(
        "sources_per_batch", "sources a batch", "mean", "different sources in a batch, on average"
    ),
    Measure(
        "distinct_share",
        "different lately",
        "share",
        "different prompts among the last 20 batches' places",
    ),
    Measure(
        "auc_mixed",
        "AUC",
        "number",
        "how well the prediction ranks mixed groups first (0.5: chance, 1: perfect)",
    ),
    Measure(
        "log_loss",
        "log-loss",
        "number",
        "of the predicted probability of a mixed group (lower is better)",
    ),
    Measure(
        "ece",
        "ECE",
        "number",
        "calibration error of that probability (0: what it says is what happens)",
    ),
    Measure(
        "ece_floor",
        "ECE floor",
        "number",
        "calibration error that chance alone makes with as many groups",
    ),
    Measure(
        "false_skip_rate",
        "false skips",
        "share",
        "mixed groups among those that would have been skipped",
    ),
    Measure("steps", "steps", "count", "optimiser steps"),
    Measure("groups", "groups", "count", "groups rolled out"),
    Measure("candidates_scored", "candidates", "count", "prompts whose pass rate was predicted"),
    Measure("explored_share", "explored", "share", "groups chosen whatever the prediction"),
    Measure(
        "fallback_share",
        "fallback",
        "share",
        "groups that filled a batch because too few qualified",
    ),
    Measure(
        "guarded_share", "guarded", "share", "groups chosen uniformly while predictions misled"
    ),
    Measure("seconds_selecting", "selecting", "seconds", "time spent choosing prompts, whole run"),
    Measure(
        "seconds_learning", "learning", "seconds", "time spent teaching the estimator, whole run"
    ),
)
BY_NAME = {measure.name: measure for measure in MEASURES}

CHANGES = "changes"
"""Stands in a list of columns for the change of accuracy by source, which is not one number."""

BREADTH = (
    "distinct_prompts",
    "unseen_share",
    "effective_prompts",
    "most_visits",
    "sources_per_batch",
)
SHORT = (
    *(
        "accuracy_whole",
        CHANGES,
        "accuracy_at_budget",
        "rollouts_to_target",
        "mixed_share",
        *BREADTH,
    ),
    *("rollouts", "tokens", "auc_mixed", "false_skip_rate"),
)
"""The columns of a table for which none are named, as far as they were measured."""
