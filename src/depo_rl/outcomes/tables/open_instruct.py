"""open-instruct's rollouts (``save_traces``, ``rollouts_save_path``) as groups.

JSONL in shards, one row a completion: step, prompt_idx, prompt_tokens, reward, dataset,
ground_truth and more. Prompts stand there as token ids and not as text. The reward of a right
answer is 10 unless ``verification_reward`` says otherwise. A run that is resumed appends its steps
again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..rows import TableRow
from ..schema import show
from .dumps import Found, Group, Sample, cut, step_of, told_by_answer, usual_size
from .table import Table

_COLUMNS = ("step", "prompt_idx", "prompt_tokens", "reward")
_VERDICTS = (frozenset({0.0, 10.0}),)  # with verification_reward as it is by default


def is_open_instruct(columns: Iterable[str]) -> bool:
    return set(_COLUMNS) <= set(columns)


def read_open_instruct(table: Table) -> Found:
    """The groups: prompts of a step by their number. Raises DataError."""
    rows = table.rows
    samples, several = told_by_answer(
        [Sample(row, step_of(row), _prompt(row), _source(row)) for row in rows],
        [row.values.get("ground_truth") for row in rows],
    )
    together: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        number = step_of(sample.row, "prompt_idx")
        together[sample.step, number, sample.prompt, sample.key].append(sample)
    usual = usual_size(together.values())
    groups: list[Group] = []
    n_again = 0
    for found in together.values():
        again = len(found) > usual and len(found) % usual == 0
        groups += cut(found, usual) if again else [found]
        n_again += again
    notes = ["Prompts are known as token ids only: no feature of a text says what it should."]
    if n_again:
        notes.append(
            f"{n_again} prompts stand several times in a step, as a resumed run leaves them: cut in order."
        )
    return Found(
        groups,
        verdict="reward",
        shaped="reward",
        scales=_VERDICTS,
        notes=(*notes, *several),
    )


def _prompt(row: TableRow) -> str:
    tokens = row.get("prompt_tokens")
    whole = isinstance(tokens, list) and all(type(token) is int for token in tokens)
    if not whole or not tokens:
        raise row.bad(f"prompt_tokens = {show(tokens)}: must be a list of token ids, and not empty")
    return " ".join(map(str, tokens))


def _source(row: TableRow) -> str:
    """The data set, of which a prompt may have several."""
    named = row.values.get("dataset")
    names = named if isinstance(named, list) else [named]
    return "+".join(str(name) for name in names if name) or "default"
