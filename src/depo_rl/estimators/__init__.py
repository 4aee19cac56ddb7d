"""Pass-rate estimators: each predicts a Beta per prompt before the rollout and learns from finished
groups."""
