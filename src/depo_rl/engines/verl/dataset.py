"""The choice: a verl dataset that gives the prompts worth rolling out in place of those that were
drawn.

data.custom_cls.path=pkg://depo_rl.engines.verl.dataset data.custom_cls.name=CurriculumDataset
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset

from ...errors import EngineError
from ...types import State
from .checks import check_gate, check_run, files_of, require_verl, uses_v1
from .driver import MakeHost, VerlDriver
from .feedback import ROW, groups_of_batch
from .importance import weighted_grpo as weighted_grpo  # importing it registers it
from .rows import GROUP_SIZE_COLUMN, prompt_table
from .settings import parse_settings

require_verl(
    [
        (
            RLHFDataset,
            "__init__",
            ["data_files", "tokenizer", "config", "processor", "max_samples"],
        ),
        (RLHFDataset, "__getitem__", ["item"]),
    ]
)


class CurriculumDataset(RLHFDataset):
    """verl's ``RLHFDataset``, with the run's curriculum if it holds the training files; settings
    are in ``data.depo``.

    Raises ConfigError for a setting that contradicts a curriculum, before any model is loaded.
    """

    def __init__(
        self,
        data_files: Any,
        tokenizer: Any,
        config: Any,
        processor: Any = None,
        max_samples: int = -1,
    ):
        self.driver: VerlDriver | None = None
        given = files_of(data_files)  # verl replaces remote names by local copies
        super().__init__(data_files, tokenizer, config, processor, max_samples)
        if given == files_of(config.train_files):
            self.driver = self._make_driver(config)

    def _make_driver(self, config: Any) -> VerlDriver:
        # verl hands down the branch ``data`` of its tree, and settings stand all over it
        root = config._get_root()
        if "actor_rollout_ref" not in root:
            raise EngineError(
                "CurriculumDataset was given a configuration without actor_rollout_ref: it needs the whole of verl's, "
                "as python -m verl.trainer.main_ppo passes it on"
            )
        self._uses_v1 = uses_v1(root)
        settings = parse_settings(
            OmegaConf.to_container(config.get("depo") or OmegaConf.create({}), resolve=True)
        )
        curriculum = settings.curriculum_config(
            int(root.actor_rollout_ref.rollout.n), int(config.get("seed") or 0)
        )
        check_run(root, curriculum)
        make_host: MakeHost | None = None
        if settings.hosted(curriculum):
            from .host import start_host

            make_host = start_host
        table = prompt_table(
            self._rows(),
            self.prompt_key,
            settings.source_column,
            settings.drop_duplicates,
            self._media(),
        )
        log = (
            Path(root.trainer.default_local_dir) / "outcomes.jsonl"
            if settings.outcome_log
            else None
        )
        driver = VerlDriver(
            table, settings, curriculum, int(config.train_batch_size), log, make_host
        )
        check_gate(root, settings, driver.curriculum.gate)
        print(
            f"depo: method {settings.method}, {len(table.prompts)} prompts of {len(table.key_of_row)} rows"
            + (
                " (the others repeat them in all but their index)"
                if len(table.row_of) < len(table.key_of_row)
                else ""
            ),
            flush=True,
        )
        return driver

    def _rows(self) -> Any:
        media = (self.image_key, self.video_key, self.audio_key)
        return self.dataframe.select_columns(
            [name for name in self.dataframe.column_names if name not in media]
        )

    def _media(self) -> Callable[[int], Mapping[str, Any]] | None:
        """Images, videos and audio of a row as they are stored, not decoded; None where there are
        none."""
        names = [
            n
            for n in (self.image_key, self.video_key, self.audio_key)
            if n in self.dataframe.column_names
        ]
        if not names:
            return None
        stored = self.dataframe.select_columns(names).with_format("arrow")

        def media_of(i: int) -> Mapping[str, Any]:
            row: Mapping[str, Any] = stored[i].to_pylist()[0]
            return row

        return media_of

    def __getitem__(self, item: int) -> dict[str, Any]:
        """verl's row, its number stamped on it twice: the older trainers keep ``extra_info``
        only."""
        row: dict[str, Any] = super().__getitem__(item)
        if self.driver is not None:
            row[ROW] = int(item)
            row["extra_info"] = {**row["extra_info"], ROW: int(item)}
        return row

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """torch's loader asks here for a whole batch: the place to choose."""
        if self.driver is None:
            return [self[item] for item in items]
        rows = []
        for item in self.driver.choose(items):
            row = self[item]
            if self.driver.sizes_vary:  # then on every row: verl joins rows that it fetched apart
                row[GROUP_SIZE_COLUMN] = self.driver.asked_of(item)
            rows.append(row)
        return rows

    def on_batch_end(self, batch: Any) -> None:
        """The feedback of verl's older trainers (trainer.use_v1=False, one_step_off): called after
        each batch."""
        if self.driver is not None and not self._uses_v1:
            self.driver.finish(groups_of_batch(batch), self.driver.step + 1)

    def state_dict(self) -> State:
        """verl stores it with its dataloader in ``global_step_N/data.pt``; empty for validation."""
        return {} if self.driver is None else self.driver.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if the state is of another run."""
        if self.driver is not None and state:
            self.driver.load_state_dict(state, keeps_in_flight=self._uses_v1)
