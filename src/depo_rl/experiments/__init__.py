"""Experiments: train, compare at equal budgets, and the embedded demo task."""
