"""`depo train`: settings, data, rewards and arguments of a run, and the run."""
