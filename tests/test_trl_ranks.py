"""Two processes on a CPU: one decides, both obey, neither waits for ever."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
import transformers
from packaging.version import Version

import trl_toys as toys
from limits import HANG_S
from scripts_trl.ranks import OTHERS
from trl_layouts import Resumed, check_batches

pytestmark = [
    pytest.mark.slow,
    pytest.mark.versions,
    *(pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY),
]

ALONE = {
    "per_device_train_batch_size": 12,
    "steps_per_generation": 2,
    "max_steps": 4,
    "curriculum": {"warmup_steps": 1, "candidate_factor": 3},
}
SCRIPT = Path(__file__).parent / "scripts_trl" / "ranks.py"


def launch(folder: Path, processes: int = 2) -> str:
    """Output of ``accelerate launch``; the whole process group is killed at the limit."""
    # with --cpu accelerate wants MPI for several processes; this way it starts them by torchrun,
    # and gloo joins them
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ACCELERATE_USE_CPU": "1",
    }
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        str(processes),
        "--multi_gpu",
    ]
    command += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    process = subprocess.Popen(
        [*command, str(SCRIPT), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"still running after {HANG_S} s: a deadlock?\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return output


NEW_BATCH = pytest.mark.skipif(
    Version(transformers.__version__).major < 5,
    reason="transformers 4 resumes with the checkpoint's batch per device, whatever is asked for",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    toys.run(folder / "alone", save_strategy="steps", save_steps=1, **ALONE)
    launch(folder)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("method", ["depo", "depo+", "dapo", "encoder", "filled"])
def test_both_ranks_roll_out_the_same_decision(ranks, method):
    folder, (main, other) = ranks
    assert main[method]["decided"] == other[method]["decided"] and main[method]["decided"]
    decided = [
        [toys.rows(32)[row]["prompt"] for row in rows for _ in range(4)]
        for rows in main[method]["decided"]
    ]
    read = [
        left + right
        for left, right in zip(main[method]["read"], other[method]["read"], strict=True)
    ]
    if method in (
        "dapo",
        "filled",
    ):  # after the rounds of each of four generations, its batch is read once more
        later = iter(read)
        assert all(prompts in later for prompts in decided) and len(read) == len(decided) + 4
    else:
        assert read == decided
    assert toys.differences(main[method]["weights"], other[method]["weights"]) == []
    assert main[method]["completion_tokens"] == other[method]["completion_tokens"]
    assert any(main[method]["losses"])
    if method not in ("dapo", "filled"):
        log = [row["prompt"] for row in toys.outcome_log(folder / method)]
        assert log == [
            toys.rows(32)[row]["prompt"] for rows in main[method]["decided"] for row in rows
        ]


@pytest.mark.parametrize("name", ["encoder", "depo+"])  # the latter reads the policy's states there
def test_only_the_main_process_predicts(ranks, name):
    _, (main, other) = ranks
    assert main[name]["n_predicted"] > 0 and main[name]["curriculum"]
    assert other[name]["n_predicted"] == 0 and other[name]["curriculum"] == {}


@pytest.mark.parametrize("method", ["depo", "depo+", "dapo", "weighted", "filled"])
def test_resume_is_exact_on_two_processes(ranks, method):
    """Methods depo and depo+ inside a generation, of which each rank has its own half."""
    for rank in ranks[1]:
        whole, again = dict(rank[method]), dict(rank[f"{method} resumed"])
        for name in ("decided", "read", "n_predicted", "weights", "stock", "weighted"):
            whole.pop(name), again.pop(name)
        assert toys.differences(whole, again) == []


@pytest.mark.parametrize("name", ["weighted", "filled"])
def test_each_rank_weighs_its_own_completions(ranks, name):
    """Known on the main process only; a group that straddles the two ranks has one weight on
    both."""
    _, (main, other) = ranks
    assert main[name]["weights"] == other[name]["weights"] and len(main[name]["weights"]) >= 2
    assert len({weight for weights in main[name]["weights"] for weight in weights}) > 4
    for i, weights in enumerate(main[name]["weights"]):
        of_all = torch.tensor(weights).repeat_interleave(4)
        for rank, weight_B in zip((main, other), of_all.chunk(2), strict=True):
            assert torch.equal(rank[name]["weighted"][i], rank[name]["stock"][i] * weight_B)
    assert toys.differences(main[name]["weights"], other[name]["weights"]) == [] and any(
        main[name]["losses"]
    )


def test_confidence_is_gathered_from_both_ranks(ranks):
    folder, _ = ranks
    log = toys.outcome_log(folder / "encoder")
    assert all(-5 < row["mean_logprob"] < 0 for row in log) and len(log) == 4 * 3


def test_method_grpo_observes_on_two_processes(ranks):
    _, (main, _) = ranks
    assert main["grpo"]["curriculum"]["ledger"]["count"]["admitted"] == 12


def test_an_error_of_the_main_process_reaches_both(ranks):
    assert [rank["exhausted"] for rank in ranks[1]] == ["the pool is empty"] * 2


@pytest.mark.parametrize("name", ["full disk", "full disk, waiting"])
def test_a_full_disk_on_the_main_process_leaves_no_rank_waiting(ranks, name):
    _, (main, other) = ranks
    assert main[name]["left"] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert toys.differences(main[name]["weights"], other[name]["weights"]) == []


@NEW_BATCH
@pytest.mark.parametrize("name", ["at once", "in quarters"])
@pytest.mark.parametrize("origin, step", [("depo", 2), ("depo", 3), ("alone", 3)])
def test_both_ranks_go_on_in_another_layout(ranks, origin, step, name):
    main, other = (rank["layouts"][origin, step, name] for rank in ranks[1])
    args = toys.config("unused", **OTHERS[name])
    for rank in (main, other):
        check_batches(rank["trained"], args, goes_on=False)
    assert toys.differences(main["weights"], other["weights"]) == []
    counts = main["counts"]
    assert counts["in_flight"] == counts["duplicates"] == 0
    assert counts["chosen"] == counts["admitted"] + counts["rejected"] + counts["failed"]


@NEW_BATCH
@pytest.mark.parametrize("step", [2, 3])
def test_a_checkpoint_of_two_processes_goes_on_with_one(ranks, tmp_path, step):
    origin = ranks[0] / "depo" / f"checkpoint-{step}"
    made = toys.trainer(tmp_path, cls=Resumed, **ALONE | {"max_steps": step + 4})
    _, messages = toys.caught(made.train, resume_from_checkpoint=str(origin))
    check_batches(made.trained, made.args, goes_on=False)
    assert sum("num_processes 2, now 1" in m for m in messages) == (step == 3)
