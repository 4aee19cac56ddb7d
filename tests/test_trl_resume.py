"""A resumed run is the run that was never interrupted: losses, choices, estimator, policy,
optimizer, bit for bit."""

import json
import shutil

import pytest

pytest.importorskip("trl")

import safetensors.torch
import torch
from trl import GRPOConfig, GRPOTrainer

import trl_toys as toys
from depo_rl.engines.trl import TokenBudget
from depo_rl.engines.trl.checkpoints import load_rank, save_rank
from depo_rl.errors import CheckpointError, StateMismatch

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

FUSED = {"warmup_steps": 1, "candidate_factor": 3, "window": [0.25, 0.4]}
ENCODER = FUSED | {"estimator": {"type": "encoder", "backbone": "tiny-random", "width": 16}}
STATES = {
    "warmup_steps": 1,
    "candidate_factor": 3,
    "estimator": toys.FUSED | {"policy_features": 8},
}
METHODS = {
    "grpo": {"method": "grpo"},
    "dapo": {"method": "dapo", "curriculum": {"max_rounds": 3}},
    "depo": {"method": "depo", "curriculum": FUSED},
    "depo encoder": {"method": "depo", "curriculum": ENCODER},
    "depo+": {"method": "depo+", "curriculum": STATES | {"estimator": toys.FUSED}},
    "depo+ policy": {"method": "depo+", "curriculum": STATES},
    "depo+ answers": {
        "method": "depo+",
        "curriculum": STATES | {"estimator": toys.FUSED | {"answer_logprob": True}},
    },
}
SMALL = {"per_device_train_batch_size": 8}
LAYOUTS = {  # settings, and the steps to resume at
    "plain": ({}, [2, 3]),
    "epochs": (
        {"per_device_train_batch_size": 64},
        [2, 3],
    ),  # two steps an epoch: at its border, and inside the second
    "inside a generation": (SMALL | {"steps_per_generation": 2}, [1, 4]),
    "inside an iteration": ({"num_iterations": 2}, [3]),
    "accumulation": (SMALL | {"gradient_accumulation_steps": 2, "steps_per_generation": 1}, [3]),
}
SAVE = {"save_strategy": "steps", "save_steps": 1}


EVERY_VERSION = ["grpo", "dapo", "depo", "depo+ policy"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.versions) if name in EVERY_VERSION else name
        for name in METHODS
    ],
)
def test_resume_is_exact(tmp_path, method, layout):
    settings, steps = LAYOUTS[layout]
    settings = METHODS[method] | settings | {"max_steps": 5}
    whole, _ = toys.caught(toys.run, tmp_path / "whole", **settings, **SAVE)
    expected, log = toys.everything(whole), toys.outcome_log(tmp_path / "whole")
    assert any(expected["losses"]) and len(log) >= 8
    if method.startswith("depo"):
        assert whole.curriculum.metrics()["skipped"], (
            "a run that filters nothing would prove little"
        )
    for step in steps:
        folder = tmp_path / f"resumed {step}"
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        shutil.copy(tmp_path / "whole" / "outcomes.jsonl", folder)  # rows after the step must go
        again, _ = toys.caught(toys.run, folder, resume=True, **settings)
        assert toys.differences(expected, toys.everything(again)) == []
        assert toys.outcome_log(folder) == log


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints 1 to 3 of a run of method depo; the trainer that made them."""
    folder = tmp_path_factory.mktemp("saved")
    return toys.run(folder, max_steps=3, **METHODS["depo"], **SAVE), folder


@pytest.fixture
def copied(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved[1], folder)
    return folder


@pytest.mark.versions
def test_a_checkpoint_that_was_cut_off_is_passed_over(saved, copied):
    (copied / "checkpoint-3" / "trainer_state.json").write_text('{"best_metric": nu')
    (copied / "checkpoint-4").mkdir()
    made, messages = toys.caught(toys.run, copied, resume=True, max_steps=3, **METHODS["depo"])
    assert [
        m
        for m in messages
        if "passing over checkpoint-4, checkpoint-3" in m and "from checkpoint-2" in m
    ]
    assert toys.differences(toys.everything(saved[0]), toys.everything(made)) == []


def test_files_of_an_attempt_that_was_cut_off_do_not_stay(copied):
    """The next save at that step starts from an empty folder: nothing of two attempts is ever
    mixed."""
    shutil.rmtree(copied / "checkpoint-3")
    (copied / "checkpoint-3").mkdir()
    (copied / "checkpoint-3" / "depo_rank7.safetensors").write_bytes(b"stale")
    toys.caught(toys.run, copied, resume=True, max_steps=3, **METHODS["depo"], **SAVE)
    assert not (copied / "checkpoint-3" / "depo_rank7.safetensors").exists()
    assert (copied / "checkpoint-3" / "trainer_state.json").exists()


@pytest.mark.versions
def test_a_finished_run_that_resumes_does_nothing(saved, copied):
    made = toys.run(copied, resume=True, max_steps=3, **METHODS["depo"])
    assert toys.differences(toys.everything(saved[0]), toys.everything(made)) == []
    assert toys.outcome_log(copied) == toys.outcome_log(saved[1])


@pytest.mark.versions
def test_a_spent_token_budget_stays_spent(tmp_path):
    settings = METHODS["depo"] | SAVE | {"max_steps": 20}
    first = toys.run(tmp_path, extra={"callbacks": [TokenBudget(150)]}, **settings)
    again = toys.run(tmp_path, resume=True, extra={"callbacks": [TokenBudget(150)]}, **settings)
    assert again.state.global_step == first.state.global_step
    assert again.completion_tokens_generated == first.completion_tokens_generated


def test_auto_starts_anew_where_there_is_nothing_and_true_does_not(tmp_path):
    made = toys.run(tmp_path / "a", resume="auto", max_steps=1)
    assert made.state.global_step == 1
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*'auto'"):
        toys.run(tmp_path / "b", resume=True)


def test_a_log_of_an_older_run_is_kept_aside(tmp_path):
    toys.run(tmp_path, max_steps=1)
    first = toys.outcome_log(tmp_path)
    toys.run(tmp_path, max_steps=1)
    kept = (tmp_path / "outcomes.previous.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == first
    assert len(toys.outcome_log(tmp_path)) == len(first)


@pytest.mark.parametrize("save_only_model", [False, True])
def test_a_checkpoint_without_our_state(tmp_path, save_only_model):
    """Of stock GRPOTrainer, or of save_only_model: the policy goes on, the curriculum starts anew,
    and that is said."""
    cls, config_cls = (
        (toys.DEPOTrainer, toys.DEPOConfig) if save_only_model else (GRPOTrainer, GRPOConfig)
    )
    toys.run(
        tmp_path,
        cls=cls,
        config_cls=config_cls,
        max_steps=2,
        save_only_model=save_only_model,
        **SAVE,
    )
    made = toys.trainer(tmp_path, max_steps=3, **METHODS["depo"])
    _, messages = toys.caught(made.train, resume_from_checkpoint=True)
    assert sum("holds no curriculum state" in m and "starts anew" in m for m in messages) == 1
    assert made.state.global_step == 3 and made.curriculum.metrics()["chosen"] == 4


def test_another_method_or_data_set_is_refused(copied):
    with pytest.raises(StateMismatch, match="method 'depo', this run has 'polaris'"):
        toys.run(copied, resume=True, method="polaris", max_steps=4, data=_labelled())
    with pytest.raises(
        StateMismatch, match=r"another data set: saved with 32 prompts .* this pool has 31 prompts"
    ):
        toys.run(copied, resume=True, max_steps=4, data=toys.dataset(31), **METHODS["depo"])


def _labelled():
    return toys.Dataset.from_list([{**row, "pass_rate": 0.5} for row in toys.rows(32)])


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """A checkpoint in the middle of a generation."""
    folder = tmp_path_factory.mktemp("inside")
    toys.run(folder, max_steps=1, steps_per_generation=2, **METHODS["depo"], **SMALL, **SAVE)
    return folder / "checkpoint-1"


def _torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    """One bit of the last number that the file holds, so that it still reads well."""
    at = max(i for i, byte in enumerate(data) if byte in b"0123456789")
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [_torn, _flipped])
def test_a_damaged_file_of_a_checkpoint_is_named(inside, tmp_path, damage):
    """Whichever it is, the Trainer's own as well; nothing is loaded, and none is passed over."""
    made = toys.trainer(tmp_path, steps_per_generation=2, **METHODS["depo"], **SMALL)
    files = sorted(path for path in inside.iterdir() if path.suffix != ".md")
    assert {"depo_state.safetensors", "depo_rank0.safetensors", "depo_sums.json"} <= {
        path.name for path in files
    }
    for path in files:
        data = path.read_bytes()
        path.write_bytes(damage(data))
        with pytest.raises(CheckpointError, match=r"cannot read .*older checkpoint") as error:
            made.train(resume_from_checkpoint=str(inside))
        path.write_bytes(data)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value) or path.name == "depo_sums.json"


@pytest.mark.parametrize("name", ["depo_state.safetensors", "depo_rank0.safetensors"])
def test_without_sums_our_own_files_still_say_that_they_are_torn(inside, tmp_path, name):
    folder = shutil.copytree(inside, tmp_path / inside.name)
    (folder / "depo_sums.json").unlink()
    (folder / name).write_bytes(_torn((folder / name).read_bytes()))
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
        toys.run(
            tmp_path, resume=True, max_steps=2, steps_per_generation=2, **METHODS["depo"], **SMALL
        )


# -- a disk that fails -----------------------------------------------------------------------------

FULL = {
    "model": ("save_model", OSError(28, "No space left on device")),
    "optimizer": (
        "torch.save",
        RuntimeError(
            "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing"
        ),
    ),
    "ours": ("save_state", OSError(28, "No space left on device")),
    "last": ("save_to_json", OSError(28, "No space left on device")),
}


def _fail(monkeypatch, where: str, times: int) -> None:
    """The first ``times`` calls of that write fail."""
    from transformers import TrainerState

    from depo_rl.engines.trl import resume

    name, error = FULL[where]
    owner = {
        "save_model": GRPOTrainer,
        "torch.save": torch,
        "save_state": resume,
        "save_to_json": TrainerState,
    }[name]
    attribute = name.removeprefix("torch.")
    real, left = getattr(owner, attribute), [times]

    def write(*args, **kwargs):
        if left[0] > 0:
            left[0] -= 1
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, write)


@pytest.mark.versions
@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_does_not_stop_training(saved, tmp_path, monkeypatch, where):
    _fail(monkeypatch, where, times=1)
    made, messages = toys.caught(toys.run, tmp_path, max_steps=3, **METHODS["depo"], **SAVE)
    (message,) = [m for m in messages if "cannot save" in m]
    assert (
        "checkpoint-1" in message
        and "1 failed in a row" in message
        and "training goes on" in message
    )
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert toys.differences(toys.everything(saved[0]), toys.everything(made)) == []


def test_the_third_failure_in_a_row_ends_the_run(tmp_path, monkeypatch):
    _fail(monkeypatch, "model", times=99)

    def train():
        with pytest.raises(
            CheckpointError, match=r"3 failed in a row.*resume from an earlier checkpoint"
        ):
            toys.run(tmp_path, max_steps=5, **METHODS["depo"], **SAVE)

    _, messages = toys.caught(train)
    assert len([m for m in messages if "cannot save" in m]) == 2
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_another_error_while_saving_is_not_mistaken_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "save_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toys.run(tmp_path, **SAVE)


@toys.since("1.8")
def test_adaptive_entropy_goes_on(tmp_path):
    settings = METHODS["depo"] | {
        "entropy_coef": 0.01,
        "use_adaptive_entropy": True,
        "max_steps": 4,
    }
    whole = toys.run(tmp_path / "a", **settings, **SAVE)
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    for name in ("entropy_ctrl_state.json", "depo_sums.json"):  # as after a kill before TRL's
        (tmp_path / "b" / "checkpoint-2" / name).unlink()
    again = toys.run(tmp_path / "b", resume=True, **settings)
    assert again.entropy_coef == whole.entropy_coef
    assert toys.losses(again) == toys.losses(whole)


def test_states_of_a_rank_come_back_whatever_their_keys(tmp_path):
    """Two paths that read the same are two tensors: a key may hold a slash."""
    state = {
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(2, dtype=torch.bfloat16), "c": [None, 3, ("x", 0.5)]},
    }
    save_rank(tmp_path, 1, state)
    again = load_rank(tmp_path, 1, "cpu")
    assert torch.equal(again["a/b"], state["a/b"]) and torch.equal(again["a"]["b"], state["a"]["b"])
    assert again["a"]["c"] == [None, 3, ["x", 0.5]]
    with pytest.raises(TypeError, match=r"keys must be strings other than '\$tensor', got 3"):
        save_rank(tmp_path, 1, {"a": {3: torch.zeros(1)}})
    assert torch.equal(load_rank(tmp_path, 1, "cpu")["a/b"], state["a/b"])


def test_a_rank_file_of_version_0_1_is_read(tmp_path):
    """There a tensor was called by its path."""
    tree = {"buffered": [{"ids": {"$tensor": "/buffered/0/ids"}, "n": 2}]}
    data = safetensors.torch.save(
        {"/buffered/0/ids": torch.arange(3)}, metadata={"state": json.dumps(tree)}
    )
    (tmp_path / "depo_rank0.safetensors").write_bytes(data)
    (row,) = load_rank(tmp_path, 0, "cpu")["buffered"]
    assert row["ids"].tolist() == [0, 1, 2] and row["n"] == 2
