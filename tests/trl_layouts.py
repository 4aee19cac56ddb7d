"""Ways to cut a generation into batches, and a trainer that tells which completions it trained on."""

import torch

import trl_toys as toys

LAYOUTS = {  # settings, and the steps at which a checkpoint lies inside a generation and at a border
    "whole": ({"per_device_train_batch_size": 16, "steps_per_generation": 1}, (2, 3)),
    "halves": ({"per_device_train_batch_size": 8, "steps_per_generation": 2}, (3, 4)),
    "quarters": ({"per_device_train_batch_size": 4, "steps_per_generation": 4}, (3, 4)),
    "gathered": (
        {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 4,
        },
        (3, 4),
    ),
    "twice": (
        {"per_device_train_batch_size": 8, "steps_per_generation": 2, "num_iterations": 2},
        (3, 4),
    ),
    "by size": ({"per_device_train_batch_size": 4, "generation_batch_size": 8}, (3, 4)),
    "odd": (
        {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 3,
        },
        (2, 3),
    ),
}


class Numbered(toys.DEPOTrainer):
    """Gives every completion a number that no other has, and remembers which were in the loss."""

    first_number = 0

    def __init__(self, *args, **kwargs):
        self.trained, self.n_generations = [], 0
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        start = self.first_number + 100 * self.n_generations
        output["number"] = torch.arange(start, start + len(inputs))
        self.n_generations += 1
        return output

    def _compute_loss(self, model, inputs):
        self.trained.append(inputs["number"].tolist())
        return super()._compute_loss(model, inputs)


class Resumed(Numbered):
    first_number = 100_000


def check_batches(trained: list[list[int]], args, goes_on: bool) -> None:
    """Batches of the new size from the first on; nothing of an old generation, unless it goes on
    as it would have; every fresh batch as often as there are iterations, and the last at most."""
    accumulated = args.gradient_accumulation_steps
    assert {len(batch) for batch in trained} == {args.per_device_train_batch_size}
    assert len(trained) == 4 * accumulated
    old = [batch for batch in trained if batch[0] < Resumed.first_number]
    assert old == trained[: len(old)] and bool(old) == goes_on
    fresh = trained[len(old) :]
    cycle = args.steps_per_generation * args.num_iterations
    for start in range(0, len(fresh), cycle):
        passes = fresh[start : start + cycle]
        one = passes[: args.steps_per_generation]
        numbers = [number for batch in one for number in batch]
        assert len(set(numbers)) == len(numbers)
        assert passes == (one * args.num_iterations)[: len(passes)]
        assert {n // 100 for n in numbers} == {Resumed.first_number // 100 + start // cycle}
