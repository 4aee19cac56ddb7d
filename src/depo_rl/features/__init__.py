"""Features: a prompt becomes a vector."""
