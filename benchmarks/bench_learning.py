"""What does a way of choosing prompts teach, judged on everything that is trained for, at equal
generated tokens?

    python benchmarks/bench_learning.py                                  # everything: some 3 hours of one core
    python benchmarks/bench_learning.py --beds even,dead85 --methods grpo,depo+,oracle --seeds 5 --jobs 2
    python benchmarks/bench_learning.py --table                          # the table of what is there already

Every method trains the same tiny policy (``learning/``) from the same weights, for the same number
of generated tokens, discarded groups included, and is judged by its exact pass rates on held-out
problems: of the whole pool's mix, and of each level. Its learning rate is the best of ``--rates``
on seeds of their own, for each group size: a better batch allows a higher one. Runs are added to
OUT/runs.jsonl as they finish and are not repeated, so that a benchmark cut short goes on; table and
per-level accuracies are written to OUT as markdown and JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning.policy import warm_start
from learning.run import BEDS, Plan, Run, Start, make_start
from learning.task import LEVELS

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "grpo": ("grpo", {}),
    "dapo": ("dapo", {}),
    "depo": ("depo", {"warmup_steps": 4}),  # the paper's 100 steps are for a run of 1,000
    "depo, band auto": ("depo", {"band": "auto", "warmup_steps": 4}),
    "depo+": ("depo+", {}),
    "mopps": ("mopps", {}),
    "greso": ("greso", {}),
    "dps": ("dps", {}),
    "bots": ("bots", {}),
    "pools": ("pools", {}),
    "pcl": ("pcl", {}),
    "adarft": ("adarft", {"estimator": {"field": "pass_rate"}}),
    "polaris": ("polaris", {}),
    "vcrl": ("vcrl", {}),
    "oracle": ("oracle", {"candidate_factor": 8}),
}
ABLATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "temperature 1": ("depo+", {"temperature": 1.0}),
    "temperature 1/3": ("depo+", {"temperature": 1 / 3}),
    "candidate_factor 4": ("depo+", {"candidate_factor": 4}),
    "candidate_factor 8": ("depo+", {"candidate_factor": 8}),
    "no history": ("depo+", {"estimator": {"history": False}}),
    "common drift": ("depo+", {"estimator": {"drift": True}}),
    "explore 15 %": ("depo+", {"explore": 0.15}),
    "answer_logprob": ("depo+", {"estimator": {"answer_logprob": True}}),
    "gate dynamic": ("depo+", {"gate": "dynamic"}),
    "importance 1/2": ("depo+", {"importance": 0.5}),
}
# The belief sees text and answer, not what the bed knows; few buckets, for the texts are short.
BELIEF = {"exclude": ["pass_rate"], "n_buckets": 2048, "n_random": 0}
FUSED = ("depo", "depo+", "pcl")
TUNING_SEEDS = (100, 101)


@dataclass(frozen=True)
class Job:
    """One run by the names of this file."""

    bed: str
    label: str
    group_size: int
    rate: float
    seed: int


def plan_of(job: Job, tokens: int) -> Plan:
    method, given = (METHODS | ABLATIONS)[job.label]
    settings = dict(given)
    if method in FUSED:
        settings["estimator"] = {**BELIEF, **settings.get("estimator", {})}
    return Plan(
        job.bed,
        method,
        job.seed,
        job.group_size,
        job.rate,
        tokens=tokens,
        curriculum=settings,
        label=job.label,
    )


def run_job(job: Job, tokens: int, start: Start) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {**asdict(job), **Run(plan_of(job, tokens), start).go()}


class Runs:
    """What has been run, kept in a file; ``get`` runs what is missing."""

    def __init__(self, out: Path, tokens: int, jobs: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path, self._tokens, self._jobs = out / "runs.jsonl", tokens, jobs
        rows = map(json.loads, self._path.read_text().splitlines()) if self._path.exists() else ()
        self._done = {self._key(row): row for row in rows if row["plan"]["tokens"] == tokens}
        self._start = _start(out / "start.pt")

    @staticmethod
    def _key(row: Mapping[str, Any]) -> Job:
        return Job(*(row[name] for name in Job.__dataclass_fields__))

    def get(self, jobs: Iterable[Job]) -> list[dict[str, Any]]:
        jobs = list(jobs)
        missing = [job for job in dict.fromkeys(jobs) if job not in self._done]
        # a fork would copy threads of torch in the middle of their work
        context = multiprocessing.get_context("spawn")
        with (
            context.Pool(min(self._jobs, max(len(missing), 1))) as pool,
            self._path.open("a") as file,
        ):
            calls = [pool.apply_async(run_job, (job, self._tokens, self._start)) for job in missing]
            for number, (job, call) in enumerate(zip(missing, calls, strict=True), 1):
                self._done[job] = row = call.get()
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"{number}/{len(missing)} {job.bed} {job.label} G={job.group_size} rate {job.rate:g} "
                      f"seed {job.seed}: {row['accuracy_whole']:.4f}", flush=True)  # fmt: skip
        return [self._done[job] for job in jobs]

    def known(self) -> list[dict[str, Any]]:
        return list(self._done.values())


def _start(path: Path) -> Start:
    if not path.exists():
        made = make_start(warm_start())
        torch.save({"weights": made.weights, "squares": list(made.squares)}, path)
    return Start(**torch.load(path))


def best_rate(runs: Runs, bed: str, label: str, group_size: int, rates: Sequence[float]) -> float:
    """By accuracy on the whole pool, mean of the tuning seeds."""
    jobs = [Job(bed, label, group_size, rate, seed) for rate in rates for seed in TUNING_SEEDS]
    found = (
        np.array([row["accuracy_whole"] for row in runs.get(jobs)]).reshape(len(rates), -1).mean(1)
    )
    return rates[int(found.argmax())]


def rows_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a bed, method and group size, over its seeds; differences are to the best grpo of the
    bed."""
    groups: dict[tuple[str, str, int, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["seed"] not in TUNING_SEEDS:
            groups.setdefault(
                (row["bed"], row["label"], row["group_size"], row["rate"]), []
            ).append(row)
    told = [_row(*key, found) for key, found in groups.items()]
    for row in told:
        grpo = [r for r in told if r["bed"] == row["bed"] and r["label"] == "grpo"]
        if grpo:
            _compare(row, max(grpo, key=lambda r: r["whole"]))
    return sorted(told, key=lambda r: (r["bed"], -r["whole"]))


def _row(
    bed: str, label: str, group_size: int, rate: float, found: list[Mapping[str, Any]]
) -> dict[str, Any]:
    def mean(name: str) -> float:
        return float(np.nanmean([f[name] for f in found]))

    whole = [f["accuracy_whole"] for f in found]
    levels = {name: float(np.mean([f["by_level"][name] for f in found])) for name in LEVELS}
    start = found[0]["by_level_start"]
    grid = np.linspace(0, found[0]["plan"]["tokens"], 101)
    curve = np.mean([np.interp(grid, *zip(*f["curve_whole"], strict=True)) for f in found], axis=0)
    names = (
        "mixed",
        "all_pass",
        "all_fail",
        "p_var",
        "levels",
        "hard_useful",
        "distinct",
        "effective",
        "most_visits",
    )
    return {
        **{"bed": bed, "label": label, "group_size": group_size, "rate": rate, "seeds": len(found)},
        **{
            "whole": float(np.mean(whole)),
            "low": min(whole),
            "high": max(whole),
            "start": mean("start_whole"),
        },
        **{
            "by_seed": {str(f["seed"]): f["accuracy_whole"] for f in found},
            "levels_mean": mean("accuracy_levels"),
        },
        **{
            "pass_at_8": mean("pass_at_8_levels"),
            "area": mean("area"),
            "curve": curve.tolist(),
            "by_level": levels,
        },
        "fell": [name for name in levels if levels[name] < start[name] - 0.01],
        **{name: mean(name) for name in names},
        "flaky_useful": mean("flaky_useful"),
    }


def _compare(row: dict[str, Any], grpo: Mapping[str, Any]) -> None:
    row["minus_grpo"] = row["whole"] - grpo["whole"]
    shared = row["by_seed"].keys() & grpo["by_seed"].keys()
    row["seeds_above_grpo"] = sum(row["by_seed"][seed] > grpo["by_seed"][seed] for seed in shared)
    mix = BEDS[row["bed"]].mix
    row["below_grpo"] = [
        name for name in mix if row["by_level"][name] < grpo["by_level"][name] - 0.01
    ]
    curve = np.maximum.accumulate(row["curve"])
    reached = np.flatnonzero(curve >= grpo["whole"])
    row["tokens_to_grpo"] = float(reached[0] / (len(curve) - 1)) if len(reached) else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "bed", "method", "G", "rate", "whole pool (seeds)", "- grpo", "above", "levels' mean", "pass@8",
        "tokens to grpo's", "mixed", "p(1-p)", "levels/batch", "useful p<.2", "distinct", "most visits",
        "below start", "below grpo",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        reached = r.get("tokens_to_grpo")
        cells = (
            r["bed"], r["label"], r["group_size"], f"{r['rate']:.1e}",
            f"{r['whole']:.4f} ({r['low']:.3f}-{r['high']:.3f}, {r['seeds']})", f"{r.get('minus_grpo', 0):+.4f}",
            f"{r.get('seeds_above_grpo', 0)}/{r['seeds']}", f"{r['levels_mean']:.4f}", f"{r['pass_at_8']:.3f}",
            "-" if reached is None else f"{reached:.2f}", f"{r['mixed']:.2f}", f"{r['p_var']:.3f}",
            f"{r['levels']:.1f}",
            f"{r['hard_useful']:.2f}", f"{r['distinct']:.0f}", f"{r['most_visits']:.0f}", " ".join(r["fell"]) or "-",
            " ".join(r.get("below_grpo", ())) or "-",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(METHODS)
    parser.add_argument("--beds", default=",".join(BEDS), help=f"of {', '.join(BEDS)}")
    parser.add_argument(
        "--methods", default=names, help=f"of {names}; or 'ablations', or one of those by name"
    )
    parser.add_argument("--groups", default="4,8", help="group sizes")
    parser.add_argument(
        "--rates", default="1.5e-4,3e-4,5e-4,8e-4,1.2e-3", help="learning rates to choose from"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400_000, help="generated in each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one core each")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument(
        "--table", action="store_true", help="run nothing, print the table of what is there"
    )
    given = parser.parse_args()
    runs = Runs(given.out, given.tokens, given.jobs)
    rates = [float(rate) for rate in given.rates.split(",")]
    labels = (
        list(ABLATIONS)
        if given.methods == "ablations"
        else [name.strip() for name in given.methods.split(";" if ";" in given.methods else ",")]
    )
    for bed in () if given.table else given.beds.split(","):
        for label in labels:
            for size in map(int, given.groups.split(",")):
                rate = best_rate(runs, bed, label, size, rates) if len(rates) > 1 else rates[0]
                runs.get(Job(bed, label, size, rate, seed) for seed in range(given.seeds))
    told = rows_of(runs.known())
    (given.out / "table.md").write_text(table(told) + "\n")
    (given.out / "table.json").write_text(json.dumps(told, indent=1))
    print(table(told))


if __name__ == "__main__":
    main()
