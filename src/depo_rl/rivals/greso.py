"""GRESO (arXiv 2506.02177): skip prompts at random, the likelier the longer they have taught
nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import expect_fields
from ..rivals_config import GRESOSettings
from ..selectors import keep_at_random
from ..types import Decision, GroupOutcome, Prediction, Prompt, State

KINDS = ("easy", "hard")


class GRESOSkip:
    """Keeps a prompt with probability max(q ** z, ``floor``), z the length of its latest run of
    all-right groups (q = q_easy) or all-wrong ones (q = q_hard); prompts without such a run are
    never skipped.

    The exploration rates q follow the share of easy and of hard groups among those that came back
    since the last choice: share >= target, q goes down by ``step``, else up, within ``limits``;
    never before a whole epoch's worth of groups was seen. Judged by counts of correct answers,
    where the code has thresholds on its shaped reward (.98, .11); a group with fewer than two
    scored completions shows neither and changes nothing.
    """

    def __init__(self, settings: GRESOSettings, n_prompts: int) -> None:
        self.settings = settings
        self._n_prompts = n_prompts
        self._run: dict[
            str, int
        ] = {}  # key -> length of the run, negative for all-wrong; absent: none
        self._q = {"easy": settings.q_easy, "hard": settings.q_hard}
        self._recent = dict.fromkeys(("easy", "hard", "all"), 0)
        self._n_seen = 0

    def appetite(self, n: int) -> int:
        return n

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        self._adapt()
        runs = [self._run.get(p.key, 0) for p in candidates]
        kinds = ["easy" if z > 0 else "hard" for z in runs]
        chances = [self._q[kind] ** abs(z) for kind, z in zip(kinds, runs, strict=True)]
        keep_P = np.maximum(chances, self.settings.floor)
        return keep_at_random(keep_P, [f"too_{kind}" for kind in kinds], n, rng)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        for o in outcomes:
            if o.n_scored < 2:
                continue
            run = self._run.pop(o.key, 0)
            if not o.mixed:
                self._run[o.key] = max(run, 0) + 1 if o.all_pass else min(run, 0) - 1
                self._recent["easy" if o.all_pass else "hard"] += 1
            self._recent["all"] += 1
            self._n_seen += 1

    def _adapt(self) -> None:
        total = self._recent["all"]
        (low, high) = self.settings.limits
        if total and self._n_seen >= self._n_prompts:
            targets = {"easy": self.settings.easy_target, "hard": self.settings.hard_target}
            for kind in KINDS:
                too_many = self._recent[kind] / total >= targets[kind]
                step = -self.settings.step if too_many else self.settings.step
                self._q[kind] = min(max(self._q[kind] + step, low), high)
        self._recent = dict.fromkeys(self._recent, 0)

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "keys": list(self._run),
            "runs": np.array(list(self._run.values()), dtype=np.int64),
            "q": dict(self._q),
            "recent": dict(self._recent),
            "n_seen": self._n_seen,
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch or ValueError, with nothing changed, if ``state`` is not of this
        selector."""
        own = self.state_dict()
        expect_fields("selector", state, own)
        for name in ("q", "recent"):
            expect_fields(f"selector {name}", state[name], own[name])
        runs = np.asarray(state["runs"]).tolist()
        run = {str(key): int(z) for key, z in zip(state["keys"], runs, strict=True)}
        q = {kind: float(state["q"][kind]) for kind in KINDS}
        n_seen = int(state["n_seen"])
        recent = {name: int(state["recent"][name]) for name in self._recent}
        self._run = run
        self._q = q
        self._recent = recent
        self._n_seen = n_seen

    def metrics(self) -> dict[str, float]:
        """q_easy, q_hard: the exploration rates. skippable: prompts that may be skipped."""
        return {
            "q_easy": self._q["easy"],
            "q_hard": self._q["hard"],
            "skippable": float(len(self._run)),
        }
