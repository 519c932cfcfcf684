"""AI agent platform. Imports point down: main | cli > routers | state > services > models."""

__version__ = "0.1.0"
