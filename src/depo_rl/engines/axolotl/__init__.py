"""axolotl: a plug-in that puts ``DEPOTrainer`` in the place of its trainer for ``rl: grpo``."""
