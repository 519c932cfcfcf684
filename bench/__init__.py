"""What a turn costs: run `python -m bench`; `docs/performance.md` says what it measures."""
