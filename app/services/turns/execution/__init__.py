"""Run turns: tasks, event logs, finalization and maintenance."""
