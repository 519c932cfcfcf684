"""The processes that serve: supervisor, workers, imports at start."""
