"""Engines: what rolls prompts out and trains. Thin adapters; the only importers of their
frameworks."""
