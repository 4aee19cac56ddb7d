"""Prompts and outcomes that the encoder's tests learn from."""

from depo_rl.types import GroupOutcome, Prompt

PROMPTS = [
    Prompt(f"k{i}", f"What is {37 * i} plus {i * i}?" + " Explain." * (i % 4)) for i in range(24)
]
POOL = {p.key: p for p in PROMPTS}
OUTCOMES = [
    GroupOutcome(p.key, i % 9, 8, mean_logprob=-0.1 * (i % 5)) for i, p in enumerate(PROMPTS)
]
