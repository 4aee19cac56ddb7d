"""``DEPOTrainer`` on axolotl's trainer.

Imported late, by axolotl's ``trainer_cls``: its modules read at import which settings plug-ins add.
"""

from __future__ import annotations

from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer

from ..trl.trainer import DEPOTrainer


class AxolotlDEPOTrainer(DEPOTrainer, AxolotlGRPOTrainer):
    """axolotl's optimizers, schedulers and parallel saving, with prompts chosen by us."""

    _tag_names = ["trl", "grpo", "axolotl", "depo"]  # noqa: RUF012 (as TRL declares it)
