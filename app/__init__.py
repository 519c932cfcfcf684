"""AI agent platform. Imports point down: main | cli > routers | state > services > models > core."""
