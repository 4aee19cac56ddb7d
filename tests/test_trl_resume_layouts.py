"""A run resumed with its batches cut otherwise: a fresh generation where the saved one no longer
fits, nothing trained on twice, and exact from there on."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("trl")

from transformers import TrainerCallback

import trl_toys as toys
from depo_rl.checkpoint import load_state, save_state
from depo_rl.engines.trl.checkpoints import STATE_FILE, SUMS_FILE
from depo_rl.errors import StateMismatch
from trl_layouts import LAYOUTS, Numbered, Resumed, check_batches

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

DEPO = {"method": "depo", "curriculum": {"warmup_steps": 1, "candidate_factor": 3}}
SAVE = {"save_strategy": "steps", "save_steps": 1}


def resumed(origin: Path, step: int, folder: Path, cls=Resumed, **settings):
    """(trainer, warnings) of a run in ``folder`` that goes on from checkpoint ``step`` of
    ``origin``."""
    folder.mkdir()
    shutil.copytree(origin / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(origin / "outcomes.jsonl", folder)
    return toys.caught(run, folder, resume=True, cls=cls, **settings)


def run(folder: Path, **settings):
    """36 prompts: an epoch is a whole number of steps in every layout."""
    return toys.run(folder, data=toys.dataset(36), **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a run of 4 steps in each layout, a checkpoint at each step."""
    folders = {}
    for name, (layout, _) in LAYOUTS.items():
        folders[name] = tmp_path_factory.mktemp("saved")
        run(folders[name], cls=Numbered, max_steps=4, **DEPO, **layout, **SAVE)
    return folders


@pytest.mark.parametrize("new", LAYOUTS)
@pytest.mark.parametrize("old", LAYOUTS)
def test_any_layout_follows_any(saved, tmp_path, old, new):
    layout = LAYOUTS[new][0]
    for step in LAYOUTS[old][1]:
        folder = tmp_path / str(step)
        settings = DEPO | layout | {"max_steps": step + 4}
        saving = SAVE | {"save_steps": step + 3}
        made, messages = resumed(saved[old], step, folder, **settings, **saving)
        cycle = load_state(saved[old] / f"checkpoint-{step}" / STATE_FILE)["cycle"]
        check_batches(made.trained, made.args, goes_on=cycle["inside"] and old == new)
        said = [m for m in messages if "a fresh one begins" in m]
        assert len(said) == (cycle["inside"] and old != new)
        _check_each_group_is_settled_once(made, folder)
        if cycle["inside"]:
            third, _ = resumed(folder, step + 3, tmp_path / "again", **settings)
            assert toys.differences(toys.everything(made), toys.everything(third)) == []


def _check_each_group_is_settled_once(made, folder: Path) -> None:
    told = made.curriculum.metrics()
    log = toys.outcome_log(folder)
    assert told["in_flight"] == told["duplicates"] == 0
    assert told["chosen"] == told["admitted"] + told["rejected"] + told["failed"] == len(log)


@pytest.mark.parametrize(
    "method",
    [
        {"method": "grpo"},
        {"method": "dapo", "curriculum": {"max_rounds": 3}},
        {"method": "depo+", "curriculum": {"warmup_steps": 1, "estimator": toys.FUSED}},
        {  # its groups wait for the loss of the whole generation, unless a checkpoint comes first
            "method": "depo",
            "curriculum": {
                "warmup_steps": 1,
                "estimator": {"type": "encoder", "backbone": "tiny-random", "width": 16},
            },
        },
    ],
    ids=["grpo", "dapo", "depo+", "encoder"],
)
def test_any_method_goes_on_in_another_layout(tmp_path, method):
    old = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    old |= {"steps_per_generation": 4, "num_iterations": 1}
    new = LAYOUTS["quarters"][0]
    toys.caught(run, tmp_path / "a", cls=Numbered, max_steps=3, **method, **old, **SAVE)
    settings = method | new | {"max_steps": 7}
    made, messages = resumed(tmp_path / "a", 3, tmp_path / "b", **settings)
    check_batches(made.trained, made.args, goes_on=False)
    (said,) = [m for m in messages if "a fresh one begins" in m]
    assert "per_device_train_batch_size 8, now 4" in said and "iterations" not in said
    told = made.curriculum.metrics()
    assert told["in_flight"] == told["duplicates"] == 0
    assert told["chosen"] == told["admitted"] + told["rejected"] + told["failed"]


def test_another_number_of_generations_is_refused_in_one_line(saved, tmp_path):
    with pytest.raises(StateMismatch, match=r"num_generations 4, this run has 2: resume") as error:
        resumed(saved["halves"], 3, tmp_path / "a", num_generations=2, max_steps=8, **DEPO)
    assert "\n" not in str(error.value)


def test_a_loss_that_now_compares_with_the_first_policy_gets_a_fresh_generation(saved, tmp_path):
    """The batches that were saved hold no log-probabilities of a reference policy."""
    settings = DEPO | LAYOUTS["halves"][0] | {"max_steps": 7, "beta": 0.1}
    settings |= {"extra": {"model": toys.saved_policy(tmp_path / "policy")}}
    made, messages = resumed(saved["halves"], 3, tmp_path / "a", **settings)
    check_batches(made.trained, made.args, goes_on=False)
    assert sum("reference_logprobs 0, now 1" in m for m in messages) == 1


def test_more_steps_are_no_other_layout(saved, tmp_path):
    settings = DEPO | LAYOUTS["halves"][0]
    made, messages = resumed(saved["halves"], 3, tmp_path / "a", max_steps=7, **settings)
    check_batches(made.trained, made.args, goes_on=True)
    assert [m for m in messages if "fresh" in m] == []


@pytest.mark.parametrize("new", ["halves", "quarters", "twice"])
def test_a_checkpoint_of_version_0_1_goes_on_if_its_batches_fit(saved, tmp_path, new):
    """It says nothing of its layout but the number of processes: the batches do."""
    old = tmp_path / "old"
    for step in (3, 4):
        shutil.copytree(saved["halves"] / f"checkpoint-{step}", old / f"checkpoint-{step}")
        state = load_state(old / f"checkpoint-{step}" / STATE_FILE)
        del state["cycle"]["layout"], state["own"]["num_generations"]
        save_state(old / f"checkpoint-{step}" / STATE_FILE, state)
        (old / f"checkpoint-{step}" / SUMS_FILE).unlink()
    shutil.copy(saved["halves"] / "outcomes.jsonl", old)
    settings = DEPO | LAYOUTS[new][0]
    made, messages = resumed(old, 3, tmp_path / "a", max_steps=7, **settings)
    assert (made.trained[0][0] < Resumed.first_number) == (new != "quarters")
    assert sum("steps_per_generation 2, now 4" in m for m in messages) == (new == "quarters")
    made, messages = resumed(old, 4, tmp_path / "b", max_steps=8, **settings)
    check_batches(made.trained, made.args, goes_on=False)
    assert [m for m in messages if "fresh" in m] == []


def test_a_checkpoint_before_the_first_step_is_a_start(saved, tmp_path):
    data = toys.dataset(36)
    first = toys.trainer(tmp_path / "a", cls=Resumed, data=data, max_steps=4, **DEPO)
    first.add_callback(_SavesAtOnce(first))
    first.train()
    made, _ = resumed(
        tmp_path / "a", 0, tmp_path / "b", max_steps=4, **DEPO, **LAYOUTS["quarters"][0]
    )
    check_batches(made.trained, made.args, goes_on=False)
    _check_each_group_is_settled_once(made, tmp_path / "b")


class _SavesAtOnce(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)


def test_trl_s_own_order_goes_on_by_the_epochs_of_the_new_layout(tmp_path):
    """A run of this layout that never stopped is in the epoch that the Trainer counts, with the
    order of that epoch."""
    new = {"method": "grpo", "per_device_train_batch_size": 64, "max_steps": 6}
    run(tmp_path / "whole", **new)
    run(tmp_path / "a", method="grpo", max_steps=5, **SAVE)  # its first epoch has 9 steps
    resumed(tmp_path / "a", 5, tmp_path / "b", **new)
    of_step = [_prompts_at(tmp_path / name, 6) for name in ("whole", "b")]
    assert of_step[0] == of_step[1] and len(of_step[0]) == 16


def _prompts_at(folder: Path, step: int) -> list[str]:
    return [row["prompt"] for row in toys.outcome_log(folder) if row["step"] == step]
