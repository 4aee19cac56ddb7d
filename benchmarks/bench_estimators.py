"""Which way of choosing finds mixed groups, on what real models did? Every method, and what each
part of ours brings.

    python benchmarks/bench_estimators.py [--rows deepscaler,math,one-shot] [--methods ...]
                                          [--seeds 0,1,2] [--factor 8]
    python benchmarks/bench_estimators.py --ablate
    python benchmarks/bench_estimators.py --stream [--ablate]
    python benchmarks/bench_estimators.py --stream --warm-start deepscaler

Reads the folder of real pass rates and histories that DEPO_DATA names. Rows (groups of 8):

* deepscaler: Qwen2.5-Math-7B, text only, 128 of 1,024 candidates; mixed share over steps 10-50.
* math: Qwen2.5-7B-Instruct with Qwen2.5-1.5B-Instruct's pass rate as a column, 128 of 1,024; steps
  10-40.
* one-shot: the history of a GRPO run, replayed, 64 of 512; steps 10-50.

``fresh`` is the share over steps 4-15, before most prompts come back; ``effective`` and ``visits``
are the effective number of prompts and the most visits of one: a share found by returning to few
prompts may teach little. ece is of P(mixed), 15 bins, after step 20. ``--warm-start`` begins with
what another of these pools teaches, without the problems that are in both. ``--stream`` instead
predicts every recorded visit of the one-shot history, in the order of the run, before it is seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from depo_rl import METHODS, GroupOutcome, Prompt, make_curriculum
from depo_rl.commands.replay.simulate import simulate
from depo_rl.engines.replay import make_replay_engine
from depo_rl.metrics import auc, ece
from depo_rl.outcomes.tables import (
    GroupHistory,
    LabelledPool,
    Source,
    SourceOptions,
    hidden_columns,
    read_source,
)
from depo_rl.parts import make_estimator
from depo_rl.pool import PromptPool
from depo_rl.types import Prediction

ROWS = {"deepscaler": (10, 50, 128), "math": (10, 40, 128), "one-shot": (10, 50, 64)}
NEED_LABELS = ("polaris", "adarft", "oracle")  # which a history does not have
SMALL, LARGE = "Qwen2.5-1.5B-Instruct T=1.0", "Qwen2.5-7B-Instruct T=1.0"
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no history": {"history": False},
    "no columns": {"columns": ()},
    "rates not believed at first": {"rate_slope": 0.0},
    "no recalibration": {"recalibrate": False},
    "no drift": {"drift": False},
    "one walk of 0.03": {"walks": (0.03,)},
    "no random features": {"n_random": 0},
    "no learning from features": {"updates_per_observe": 0},
}


def folder() -> Path:
    return Path(os.environ.get("DEPO_DATA", "../shared/data"))


@lru_cache
def read_row(row: str) -> Source:
    if row == "one-shot":
        return read_source(folder() / "histories/one_shot_rlvr_dsr1209.parquet")
    if row == "deepscaler":
        return read_source(folder() / "pass_rates/deepscaler_qwen2.5-math-7b.parquet")
    pools = []
    for policy in (LARGE, SMALL):
        options = SourceOptions(where={"policy": policy})
        pool = read_source(folder() / "pass_rates/math_train_policies.parquet", options)
        assert isinstance(pool, LabelledPool)
        pools.append(pool)
    rates = dict(zip((p.key for p in pools[1].prompts), pools[1].rate_P.tolist(), strict=True))
    return dataclasses.replace(
        pools[0], prompts=tuple(_with_rate(p, rates) for p in pools[0].prompts)
    )


def _with_rate(prompt: Prompt, rates: dict[str, float]) -> Prompt:
    fields = dict(prompt.fields) | {"small_rate": rates.get(prompt.key)}
    return dataclasses.replace(prompt, fields=fields)


def warmed(row: str, other: str | None, folder: Path) -> dict[str, Any]:
    """Settings of the estimator with a file of the ``other`` pool's labels, for problems that
    ``row`` does not have."""
    if other is None:
        return {}
    pool, taken = read_row(other), {_letters(prompt.text) for prompt in read_row(row).prompts}
    assert isinstance(pool, LabelledPool)
    kept = [
        (p, r)
        for p, r in zip(pool.prompts, pool.rate_P.tolist(), strict=True)
        if _letters(p.text) not in taken
    ]
    path = folder / f"{other}-without-{row}.jsonl"
    lines = [
        {"prompt": p.text, "answer": p.fields.get("answer"), "pass_rate": rate} for p, rate in kept
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{path.name}: {len(kept):,} of {len(pool.prompts):,} problems", flush=True)
    return {"warm_start": str(path)}


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def measure(
    row: str, method: str, estimator: dict[str, Any], seed: int, factor: int | None
) -> dict[str, float]:
    source, (low, high, n) = read_row(row), ROWS[row]
    config: dict[str, Any] = {"group_size": 8, "seed": seed}
    if METHODS[method].defaults.get("estimator", {"type": "fused"})["type"] == "fused":
        config["estimator"] = {"exclude": hidden_columns(source)} | estimator
    if method == "depo":
        config |= {"band": "auto", "warmup_steps": 4}
    if factor is not None:
        config = METHODS[method].share({"candidate_factor": factor}, config)
    curriculum = make_curriculum(method, source.prompts, config)
    engine = make_replay_engine(source, 8, seed)
    started = time.perf_counter()
    late = _Late(curriculum)
    result = simulate(late.curriculum, engine, n, high)  # type: ignore[arg-type]
    # A method that keeps qualified prompts for later has steps without a new group.
    share = {r["step"]: r["mixed_share"] for r in result.history if r["mixed_share"] is not None}
    p_mixed, mixed = late.columns()
    return {
        "share": statistics.fmean(v for s, v in share.items() if low <= s),
        "fresh": statistics.fmean(v for s, v in share.items() if 4 <= s <= 15),
        "ece": ece(p_mixed, mixed),
        "auc": auc(p_mixed, mixed),
        "prompts": float(result.distinct_prompts or 0),
        "effective": result.effective_prompts or 0.0,
        "visits": float(result.most_visits or 0),
        "rollouts": float(result.rollouts or 0),
        "seconds": time.perf_counter() - started,
    }


class _Late:
    """Listens to a curriculum's settlements after step 20."""

    def __init__(self, curriculum: Any) -> None:
        self.curriculum, self._rows, self._step, settle = curriculum, [], 0, curriculum.settle

        def listen(outcomes: Any) -> Any:
            settled = settle(outcomes)
            steps = [s.outcome.policy_step for s in settled if s.outcome.policy_step is not None]
            self._step += bool(steps)
            if self._step > 20:
                self._rows += [
                    s for s in settled if s.outcome.n_scored and np.isfinite(s.predicted_mean)
                ]
            return settled

        curriculum.settle = listen

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        belief = Prediction(np.array([s.predicted_mean for s in self._rows]),
                            np.array([s.predicted_strength for s in self._rows]))  # fmt: skip
        return belief.p_mixed(8), np.array([s.outcome.mixed for s in self._rows])


def stream(column: bool, estimator: dict[str, Any], seed: int) -> dict[str, float]:
    """One-step-ahead predictions of the whole one-shot history, batches of 128 in the order of the
    run."""
    source = read_row("one-shot")
    assert isinstance(source, GroupHistory)
    known = _known_rates() if column else {}
    prompts = {
        p.key: dataclasses.replace(
            p, fields={"answer": p.fields.get("answer"), "rate_7b": known.get(p.text)}
        )
        for p in source.prompts
    }
    config = METHODS["depo+"].config(
        {"estimator": {"type": "fused"} | estimator, "seed": seed}, "stream"
    )
    fused = make_estimator(PromptPool(list(prompts.values())), config)
    visits = sorted(
        (row.step or 0, nth, i, key, row.n_correct)
        for i, (key, rows) in enumerate(source.visits.items())
        for nth, row in enumerate(rows)
    )
    told: list[tuple[float, ...]] = []
    for batch in _distinct_batches(visits, 128):
        p_mixed = fused.predict([prompts[v[3]] for v in batch]).p_mixed(8)
        told += [
            (p, 0 < v[4] < 8, v[1], v[0], prompts[v[3]].text in known)
            for p, v in zip(p_mixed, batch, strict=True)
        ]
        fused.observe([GroupOutcome(v[3], v[4], 8, policy_step=v[0]) for v in batch])
    p, mixed, nth, step, labelled = np.array(told, dtype=float).T
    first, later, settled = nth == 0, nth >= 2, step > 20
    result = {
        "auc first visits": auc(p[first], mixed[first]),
        "auc from the third visit on": auc(p[later], mixed[later]),
        "auc from the second visit on": auc(p[nth >= 1], mixed[nth >= 1]),
        "ece after step 20": ece(p[settled], mixed[settled]),
    }
    if column:
        kept = first & (labelled > 0)
        result["auc first visits, rate known"] = auc(p[kept], mixed[kept])
    return result


def _known_rates() -> dict[str, float]:
    pool = read_row("deepscaler")
    assert isinstance(pool, LabelledPool)
    return dict(zip((p.text for p in pool.prompts), pool.rate_P.tolist(), strict=True))


def _distinct_batches(visits: list[Any], size: int) -> list[list[Any]]:
    batches: list[list[Any]] = [[]]
    for visit in visits:
        if len(batches[-1]) == size or any(v[3] == visit[3] for v in batches[-1]):
            batches.append([])
        batches[-1].append(visit)
    return batches


def show(name: str, runs: list[dict[str, float]]) -> None:
    cells = []
    for key in runs[0]:
        values = [run[key] for run in runs]
        digits = 0 if min(values) >= 100 else 1 if key == "seconds" else 3
        spread = (
            f" [{min(values):.{digits}f}-{max(values):.{digits}f}]"
            if len(values) > 1 and key != "seconds"
            else ""
        )
        cells.append(f"{key} {statistics.fmean(values):.{digits}f}{spread}")
    print(f"{name:<40} " + "  ".join(cells), flush=True)


def tasks(args: argparse.Namespace, folder: Path) -> list[tuple[str, Any]]:
    """(what it is called, what runs it but for its seed) of each line of the table."""
    variants: dict[str, dict[str, Any]] = ABLATIONS if args.ablate else {"": {}}
    rows = (
        ["one-shot"]
        if args.stream
        else [row for row in args.rows.split(",") if row != args.warm_start]
    )
    warm = {row: warmed(row, args.warm_start, folder) for row in rows}
    if args.stream:
        pairs = [(name, column) for name in variants for column in (False, True)]
        return [
            (
                f"stream {name}{' + rate' * column}",
                partial(stream, column, warm["one-shot"] | variants[name]),
            )
            for name, column in pairs
        ]
    methods = ["depo+"] if args.ablate or args.warm_start else args.methods.split(",")
    return [
        (
            f"{row} {m} {name}".strip(),
            partial(measure, row, m, warm[row] | variants[name], factor=args.factor),
        )
        for row in rows
        for m in methods
        for name in variants
        if row != "one-shot" or m not in NEED_LABELS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--factor", type=int, help="candidates a place for every method, instead of its own default"
    )
    parser.add_argument("--ablate", action="store_true", help="depo+ without each of its parts")
    parser.add_argument(
        "--stream", action="store_true", help="one-step-ahead predictions of the one-shot history"
    )
    parser.add_argument(
        "--warm-start", choices=("deepscaler", "math"), help="depo+ begins with this pool's labels"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    with ProcessPoolExecutor(args.jobs) as workers, TemporaryDirectory() as folder:
        jobs = tasks(args, Path(folder))
        lines = [(name, [workers.submit(run, seed=seed) for seed in seeds]) for name, run in jobs]
        for name, runs in lines:
            show(name, [run.result() for run in runs])


if __name__ == "__main__":
    main()
