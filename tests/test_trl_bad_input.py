"""Bad input at the TRL layer: each ends early, in one line that says what, where and the mend."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("trl")

from datasets import Dataset, IterableDataset

import trl_toys as toys
from depo_rl.engines.trl import TokenBudget, compat
from depo_rl.errors import ConfigError, DataError, EngineError, PoolExhausted
from limits import HANG_S

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Dataset.from_dict({"prompt": []}), DataError, "train_dataset has no rows"),
        (toys.dataset(3), PoolExhausted, "the pool has 3 prompts, but each generation takes 4"),
        (
            Dataset.from_list([{"question": "1+1=", "answer": "2"}] * 8),
            DataError,
            "row 0 of train_dataset: prompt is None, must be a text .*; columns there: answer, question",
        ),
        (
            Dataset.from_list([*toys.rows(8), {"prompt": None, "answer": "1", "source": "odd"}]),
            DataError,
            "row 8 of train_dataset: prompt is None",
        ),
        (
            IterableDataset.from_generator(lambda: iter(toys.rows(8))),
            DataError,
            r"IterableDataset; .* Dataset\.from_generator\(lambda: iter\(stream\)\).*method='grpo'",
        ),
    ],
)
@pytest.mark.parametrize("method", ["depo", "dapo"])
def test_data_sets(tmp_path, method, data, error, message):
    with pytest.raises(error, match=message) as caught:
        toys.trainer(tmp_path, method=method, data=data)
    one_line(caught)


def test_what_is_said_of_streams_gives_their_rows(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(toys.rows(32)))
    kept = Dataset.from_generator(lambda: iter(stream), cache_dir=str(tmp_path / "cache"))
    made = toys.run(tmp_path / "run", data=kept, max_steps=1)
    assert [prompt.text for prompt in made.curriculum.pool.prompts] == [
        row["prompt"] for row in toys.rows(32)
    ]


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            {"columns": ["soruce"]},
            "column 'soruce' is in none of the 32 prompts. Did you mean 'source'?",
        ),
        (
            {"columns": ["source"], "exclude": ["source"]},
            "column 'source' is both named and excluded",
        ),
    ],
)
def test_columns_of_the_data_set(tmp_path, estimator, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        toys.trainer(tmp_path, method="depo+", curriculum={"estimator": toys.FUSED | estimator})
    one_line(caught)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dpeo"}, "unknown method 'dpeo'. Did you mean 'depo'"),
        ({"curriculum": {"windw": [0.1, 0.9]}}, "unknown setting 'windw'. Did you mean 'window'"),
        (
            {"curriculum": {"window": [0.9, 0.1]}},
            "window must be two rates with 0 <= low < high <= 1",
        ),
        ({"curriculum": "{window"}, "not valid JSON"),
        ({"curriculum": "[1]"}, "must be a JSON object"),
        (
            {"curriculum": {"group_size": 9}},
            "curriculum.group_size = 9 contradicts num_generations = 4",
        ),
        (
            {
                "method": "depo+",
                "curriculum": {"estimator": {"type": "fused", "policy_features": -1}},
            },
            "curriculum: estimator.policy_features = -1: Input should be greater than or equal to 0",
        ),
        ({"curriculum": {"seed": 1}}, "curriculum.seed = 1 contradicts seed = 3: set seed only"),
    ],
)
def test_settings(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        toys.config(tmp_path, **settings)
    one_line(caught)


def test_a_group_of_one(tmp_path):
    with pytest.raises(ValueError, match=r"at least 2 generations|greater than or equal to 2"):
        toys.config(tmp_path, num_generations=1)


def test_a_budget_of_nothing():
    with pytest.raises(ConfigError, match="at least 1"):
        TokenBudget(0)


@pytest.mark.parametrize("method", ["depo", "grpo"])
def test_nan_logits(tmp_path, method):
    made = toys.trainer(tmp_path, method=method)
    for parameter in made.model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(
        EngineError, match=r"step 0: the policy's probabilities are NaN.*Lower learning_rate"
    ) as caught:
        made.train()
    one_line(caught)


def test_an_error_of_the_model_itself_is_not_renamed(tmp_path):
    made = toys.trainer(tmp_path)

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    made.model.generate = broken
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        made.train()


def test_an_unsupported_trl_is_refused_at_import(monkeypatch):
    import trl

    compat.require_trl()
    monkeypatch.setattr(trl.GRPOTrainer, "_calculate_rewards", lambda self, inputs: None)
    with pytest.raises(
        EngineError,
        match=r"GRPOTrainer._calculate_rewards takes \['inputs'\].*Install trl>=0.24,!=1.15.0,<2",
    ):
        compat.require_trl()
    monkeypatch.undo()
    monkeypatch.delattr(trl.GRPOTrainer, "_generate")
    with pytest.raises(EngineError, match=r"GRPOTrainer\._generate is missing, expected"):
        compat.require_trl()


def test_a_wrapper_that_passes_on_what_it_is_given_is_taken(monkeypatch):
    """Unsloth's, for one."""
    import trl

    real = trl.GRPOTrainer._calculate_rewards
    monkeypatch.setattr(
        trl.GRPOTrainer, "_calculate_rewards", lambda self, *args, **kwargs: real(*args, **kwargs)
    )
    compat.require_trl()


def test_a_trainer_that_took_trl_s_place_after_us_is_noticed(tmp_path, monkeypatch):
    import trl

    monkeypatch.setattr(trl, "GRPOTrainer", type("Faster", (trl.GRPOTrainer,), {}))
    with pytest.raises(
        EngineError, match=r"Faster took the place of trl\.GRPOTrainer after .*import unsloth first"
    ) as error:
        toys.trainer(tmp_path)
    one_line(error)


def test_a_grpotrainer_that_ms_swift_took_apart_is_noticed(tmp_path, monkeypatch):
    import trl

    monkeypatch.delattr(trl.GRPOTrainer, "__init__")
    with pytest.raises(
        EngineError, match=r"ms-swift .* GRPOTrainer\.__init__.*own process"
    ) as error:
        toys.trainer(tmp_path)
    one_line(error)


def test_a_missing_trl_is_one_line():
    code = "import sys; sys.modules['trl'] = None\nfrom depo_rl.engines.trl import DEPOTrainer"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S
    )
    assert "EngineError: the TRL engine needs trl and torch" in done.stderr.splitlines()[-1]


def test_a_replaced_sampler_is_noticed(tmp_path, monkeypatch):
    import torch

    made = toys.trainer(tmp_path, method="grpo")
    made._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(
        made.train_dataset
    )
    with pytest.raises(EngineError, match="not of one prompt: was TRL's sampler replaced"):
        made.train()


def test_a_method_that_extends_groups_is_refused_at_the_start(tmp_path):
    with pytest.raises(
        EngineError, match=r"'speed' extends .* which TRL cannot: .*dapo, depo, .*'depo replay'"
    ) as error:
        toys.trainer(tmp_path, method="speed")
    assert "\n" not in str(error.value)
