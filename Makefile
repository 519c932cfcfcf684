# make run     the server, on http://127.0.0.1:8000 (HOST, PORT and DATA_DIR change where)
# make test    the whole test suite
# make check   what CI runs besides: format, lint, types, imports
# make bench   what a turn costs, and how soon a voice turn is heard
# make faults  break the server in every way, in full (hours); ARGS="--row NAME --rounds N --seed S"

PYTHON_BIN := .venv/bin/python

.PHONY: run test check bench faults lock fix clean

run:
	@scripts/run

test:
	@scripts/bootstrap requirements/dev.txt
	@$(PYTHON_BIN) -m pytest

check:
	@scripts/bootstrap requirements/dev.txt
	@scripts/check

fix:
	@scripts/bootstrap requirements/dev.txt
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench:
	@scripts/bootstrap requirements/dev.txt
	@$(PYTHON_BIN) -m bench
	@$(PYTHON_BIN) -m bench.voice

faults:
	@scripts/bootstrap requirements/dev.txt
	@$(PYTHON_BIN) -m tests.faults $(ARGS)

lock:
	@scripts/bootstrap requirements/dev.txt
	scripts/lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
