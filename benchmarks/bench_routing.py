"""How well is the gain of a larger model predicted? Six pairs of models on public data, five folds
grouped by text, beside a plain ridge on TF-IDF, the paper's rule, chance and an oracle.

    DEPO_DATA=../shared/data python benchmarks/bench_routing.py [--tables math,gsm8k] [--all-math-pairs]

The measure is the area under the recovered-gap curve (``routing.curves``): folds are ranked each for
itself, and a query's place in its fold is what is pooled. Intervals: bootstrap over queries. MMLU's
prompts are short and by subject: some of what is learnt there is the subject.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depo_rl.outcomes.rows import read_rows
from depo_rl.routing.curves import area, bootstrap_areas, chance
from depo_rl.routing.model import SuccessModel
from depo_rl.routing.rows import QueryRows
from depo_rl.types import FloatArray

DATA = Path(os.environ.get("DEPO_DATA", "../shared/data"))
WIDE = {  # name: file, small, large
    "mmlu": ("routellm_mmlu", "mixtral-8x7b-instruct", "gpt-4-1106-preview"),
    "gsm8k": ("routellm_gsm8k", "mixtral-8x7b-instruct", "gpt-4-1106-preview"),
    "llmrouter 1": ("llmrouter_dcrouter", "qwen2.5-7b-instruct", "llama-3.3-nemotron-super-49b-v1"),
    "llmrouter 2": (
        "llmrouter_dcrouter",
        "llama-3.1-8b-instruct",
        "llama-3.1-nemotron-51b-instruct",
    ),
    "routerarena": ("routerarena", "claude-3-haiku", "gemini-2.0-flash"),
}
MATH = ("Qwen2.5-1.5B-Instruct T=1.0", "Qwen2.5-7B-Instruct T=1.0")
NAMES = ("math", *WIDE)
FOLDS = 5
RIDGE_PENALTIES = (1.0, 3.0, 10.0)  # of which the best on the judged queries counts: in its favour


class Task(NamedTuple):
    texts: list[str]
    score_PM: FloatArray


def load(name: str) -> Task:
    if name == "math":
        return math_task(MATH)[0]
    file, *models = WIDE[name]
    rows, _ = read_rows(DATA / "routing" / f"{file}.parquet")
    score = np.array([[row.values[model] for model in models] for row in rows], np.float64)
    return Task([row.text("prompt") for row in rows], score)


def math_task(policies: tuple[str, ...] | None = None) -> tuple[Task, list[str]]:
    """The file's policies, all unless named, the weakest first unless named."""
    rows, _ = read_rows(DATA / "pass_rates" / "math_train_policies.parquet")
    rates: dict[str, dict[str, float]] = {}
    for row in rows:
        rates.setdefault(row.values["policy"], {})[row.text("prompt")] = row.values["pass_rate"]
    names = list(policies or sorted(rates, key=lambda p: sum(rates[p].values())))
    texts = [text for text in rates[names[0]] if all(text in rates[p] for p in names)]
    return Task(texts, np.array([[rates[p][text] for p in names] for text in texts])), names


def folds(texts: list[str], seed: int) -> Any:
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    fold = np.random.default_rng(seed).permutation(len(number)) % FOLDS
    return np.array([fold[number[text]] for text in texts])


def unseen(task: Task, fold_P: Any) -> tuple[FloatArray, dict[float, FloatArray]]:
    """Our predictions (P, M), and the ridge's of the gain by penalty, of queries not learnt from."""
    ours = np.empty_like(task.score_PM)
    ridge = {penalty: np.empty(len(fold_P)) for penalty in RIDGE_PENALTIES}
    gain = task.score_PM[:, -1] - task.score_PM[:, 0]
    for fold in range(FOLDS):
        train = np.flatnonzero(fold_P != fold)
        test = np.flatnonzero(fold_P == fold)
        texts = [task.texts[i] for i in train]
        new = [task.texts[i] for i in test]
        model, _ = SuccessModel.fit(texts, task.score_PM[train])
        ours[test] = model.predict(new)
        rows, own = QueryRows.learn(texts)
        for penalty in RIDGE_PENALTIES:
            ridge[penalty][test] = plain_ridge(
                own.grams, gain[train], rows.rows(new).grams, penalty
            )
    return ours, ridge


def plain_ridge(grams: Any, gain_P: FloatArray, new: Any, penalty: float) -> FloatArray:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=2 * penalty, solver="sparse_cg", tol=1e-3)  # rows have norm 2, not 1
    predicted: FloatArray = model.fit(grams, gain_P).predict(new)
    return predicted


def places(rank_P: FloatArray, fold_P: Any) -> FloatArray:
    """Of each query in its fold, in [0, 1)."""
    place = np.empty(len(rank_P))
    for fold in range(FOLDS):
        own = fold_P == fold
        place[own] = np.argsort(np.argsort(rank_P[own], kind="stable")) / own.sum()
    return place


def show(name: str, task: Task, seed: int) -> tuple[FloatArray, FloatArray]:
    """Prints a table; returns our and the ridge's areas, as they are and on bootstrap draws."""
    start = time.perf_counter()
    fold_P = folds(task.texts, seed)
    ours, ridge = unseen(task, fold_P)
    small = task.score_PM[:, 0]
    large = task.score_PM[:, -1]
    best = max(RIDGE_PENALTIES, key=lambda p: area(places(ridge[p], fold_P), small, large).value)
    ranks = {
        f"ridge (penalty {best:g})": places(ridge[best], fold_P),
        "the paper's rule": places(-ours[:, 0], fold_P),
        "oracle": large - small,
        "ours": places(ours[:, -1] - ours[:, 0], fold_P),
    }
    print(f"\n{name}: {len(small):,} queries, small {small.mean():.3f}, large {large.mean():.3f}")
    for rule, rank in ranks.items():
        found = area(rank, small, large)
        print(f"  {rule:<20} {found.value:.3f}  [{found.low:.3f}, {found.high:.3f}]")
    luck = chance(small, large)
    print(f"  {'random':<20} {luck.value:.3f}  [{luck.low:.3f}, {luck.high:.3f}]")
    drawn = [
        bootstrap_areas(ranks[rule], small, large) for rule in ("ours", f"ridge (penalty {best:g})")
    ]
    low, high = np.nanpercentile((drawn[0] - drawn[1])[1:], (2.5, 97.5))
    gap = drawn[0][0] - drawn[1][0]
    print(f"  {'ours - ridge':<20} {gap:+.3f}  [{low:+.3f}, {high:+.3f}]", end="")
    print(f"   ({time.perf_counter() - start:.0f} s)", flush=True)
    return drawn[0], drawn[1]


def show_math_pairs(seed: int, least: float = 0.05) -> None:
    """Every pair of the file's policies whose means differ by ``least``, from one joint fit."""
    task, names = math_task()
    fold_P = folds(task.texts, seed)
    predicted = np.empty_like(task.score_PM)
    for fold in range(FOLDS):
        texts = [t for t, f in zip(task.texts, fold_P.tolist(), strict=True) if f != fold]
        new = [t for t, f in zip(task.texts, fold_P.tolist(), strict=True) if f == fold]
        model, _ = SuccessModel.fit(texts, task.score_PM[fold_P != fold])
        predicted[fold_P == fold] = model.predict(new)
    won = []
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            small = task.score_PM[:, a]
            large = task.score_PM[:, b]
            if large.mean() - small.mean() < least:
                continue
            ours = area(places(predicted[:, b] - predicted[:, a], fold_P), small, large).value
            paper = area(places(-predicted[:, a], fold_P), small, large).value
            won.append(ours > paper)
            print(f"  {names[a]:<34} {names[b]:<34} paper {paper:.3f}  ours {ours:.3f}")
    print(f"{sum(won)} of {len(won)} pairs: ours above the paper's rule")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", default=",".join(NAMES))
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--all-math-pairs", action="store_true")
    given = parser.parse_args()
    if given.all_math_pairs:
        show_math_pairs(given.seed)
        return
    drawn = [show(name, load(name), given.seed) for name in given.tables.split(",")]
    gaps = np.mean([ours - ridge for ours, ridge in drawn], axis=0)
    low, high = np.nanpercentile(gaps[1:], (2.5, 97.5))
    print(f"\nmean of {len(drawn)}, ours - ridge: {gaps[0]:+.3f}  [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
