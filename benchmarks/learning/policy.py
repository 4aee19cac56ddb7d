"""The policy: 47,000 weights, autoregressive, a small network over a window; and its supervised
warm start.

At each place of the answer it sees the operands' digits there and one place before, the token that
it said before, the family, the length and the place. So it must learn to carry, and what it learns
of one length helps at another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .task import END, LEVELS, LONGEST, N_FEATURES, NOTHING, OFFSETS, Encoded, make_problems

# A ladder: low levels known, high ones out of reach, some in between.
LADDER: Mapping[str, float] = {
    **{"add2": 0.20, "add3": 0.06, "add4": 0.015, "add5": 0.004, "add6": 0.001},
    **{"sub2": 0.20, "sub3": 0.06, "sub4": 0.015, "sub5": 0.004, "sub6": 0.001},
    **{"mul1": 0.12, "mul2": 0.06, "mul3": 0.02, "mul4": 0.004, "mul5": 0.001},
    **{
        "sort3": 0.12,
        "sort4": 0.08,
        "sort6": 0.03,
        "sort8": 0.008,
        "sort10": 0.002,
        "sort12": 0.001,
    },
}
WIDTH = 128


class Policy(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(N_FEATURES, WIDTH) * 0.35)
        self.count = nn.Linear(10, WIDTH)
        self.hidden = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.out = nn.Linear(WIDTH, 11)

    def see(self, problems: Encoded, index_P: Tensor, places: slice = slice(None)) -> Tensor:
        """What each problem adds at each place, whatever was said before: (P, T, WIDTH)."""
        place_PT7 = problems.place_PT7[index_P][:, places]
        flat = F.embedding_bag(place_PT7.flatten(0, 1), self.embed, mode="sum")
        return (
            flat.view(*place_PT7.shape[:2], WIDTH) + self.count(problems.count_PD[index_P])[:, None]
        )

    def say(self, seen: Tensor, before: Tensor) -> Tensor:
        """Log-probabilities of the next token: (..., WIDTH) and (...) -> (..., 11)."""
        x = F.relu(seen + self.embed[OFFSETS[7] + before])
        for layer in self.hidden:
            x = x + F.relu(layer(x))
        return self.out(x).log_softmax(-1)

    def log_probability(self, problems: Encoded, index_P: Tensor, tokens_PGT: Tensor) -> Tensor:
        """Of each completion's every token, (P, G, T); 0 where it has ended (-1)."""
        n, group, longest = tokens_PGT.shape
        seen = self.see(problems, index_P, slice(longest))[:, None].expand(-1, group, -1, -1)
        start = torch.full((n, group, 1), NOTHING)
        before = torch.cat([start, tokens_PGT[..., :-1].clamp(min=0)], dim=-1)
        logp = self.say(seen, before).gather(-1, tokens_PGT.clamp(min=0)[..., None]).squeeze(-1)
        return logp * (tokens_PGT >= 0)

    @torch.no_grad()
    def sample(
        self, problems: Encoded, index_P: Tensor, group: int, generator: torch.Generator
    ) -> Tensor:
        """``group`` completions of each problem, (P, G, T) tokens, -1 after the end. One token over
        the answer's length at most: a longer one is wrong anyway."""
        n = len(index_P)
        seen = self.see(problems, index_P)
        tokens = torch.full((n * group, LONGEST), -1)
        before, live = torch.full((n * group,), NOTHING), torch.arange(n * group)
        owner = torch.arange(n).repeat_interleave(group)
        for place in range(min(LONGEST, int(problems.length_P[index_P].max()) + 1)):
            chance = self.say(seen[owner[live], place], before[live]).exp()
            said = torch.multinomial(chance, 1, generator=generator)[:, 0]
            tokens[live, place] = said
            before[live] = said
            live = live[said != END]
            if not len(live):
                break
        return tokens.view(n, group, LONGEST)

    @torch.no_grad()
    def pass_rates(self, problems: Encoded, index: np.ndarray | None = None) -> np.ndarray:
        """The exact pass rate of each problem, (P,)."""
        every = torch.arange(len(problems)) if index is None else torch.as_tensor(index)
        parts = []
        for index_P in every.split(1024):
            longest = int(problems.length_P[index_P].max())
            answer = problems.answer_PT[index_P][:, None, :longest]
            parts.append(
                self.log_probability(problems, index_P, answer).sum((1, 2)).exp().double().numpy()
            )
        return np.concatenate(parts)


def warm_start(steps: int = 680, seed: int = 1, batch: int = 256, rate: float = 2e-3) -> Policy:
    """A policy taught by examples of the ladder: part of the levels are known, part out of
    reach."""
    policy = Policy(seed)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    problems = Encoded(make_problems(20_000, 999 + seed, LADDER, held_out=False))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rising, falling = (
            min(1.0, (step + 1) / 50),
            max(0.05, min(1.0, (steps - step) / (0.3 * steps))),
        )
        for group in optimiser.param_groups:
            group["lr"] = rate * rising * falling
        index_P = torch.randint(len(problems), (batch,), generator=generator)
        answer = problems.answer_PT[index_P][:, None, : int(problems.length_P[index_P].max())]
        loss = -policy.log_probability(problems, index_P, answer).sum() / (answer >= 0).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return policy


def held_out(per_level: int = 40) -> Encoded:
    """``per_level`` problems of every level that no pool holds."""
    return Encoded(
        [p for level in LEVELS for p in make_problems(per_level, 7, {level: 1.0}, held_out=True)]
    )


def by_level(policy: Policy, problems: Encoded, power: int = 1) -> dict[str, float]:
    """Mean over each level's problems of the probability that one of ``power`` answers is right."""
    rate_P = 1.0 - (1.0 - policy.pass_rates(problems)) ** power
    return {level: float(rate_P[problems.levels == level].mean()) for level in LEVELS}
