"""Features that were measured and brought nothing (docs/paper_index.md): off by default, for who
has other data."""
