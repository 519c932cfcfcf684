# make run      the server, on http://127.0.0.1:8000 (set HOST, PORT and DATA_DIR to change that)
# make test     the whole test suite, in several processes; ARGS="tests/turns -k idempotency" runs a part
# make check    what CI also runs: format, lint, types, import contracts, dependencies
# make fix      format the code and apply the linter's fixes
# make bench    CPU per turn, and the latency of voice turns
# make faults   inject faults into real servers, in full (hours); ARGS="--row NAME --rounds N --seed S"
# make lock     rewrite the hashed requirement files from pyproject.toml
# make screenshots  the pictures of the console in docs/; ARGS=FOLDER makes one of every view there
# make release  set the version and build the changelog; VERSION=x.y.z

PYTHON_BIN := .venv/bin/python
# More than there are cores, for most tests wait most of their time. Each would rewrite the
# assertions of all the others' tests, too, if it could not read what is cached.
TEST_PROCESSES ?= 6

.PHONY: screenshots run test check bench faults lock release fix clean

run:
	@scripts/run

test:
	@scripts/bootstrap requirements/dev.txt
	@PYTHONDONTWRITEBYTECODE= $(PYTHON_BIN) -m pytest --numprocesses $(TEST_PROCESSES) $(ARGS)

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

screenshots:
	@scripts/bootstrap requirements/dev.txt
	@$(PYTHON_BIN) -m tests.console.screenshots $(ARGS)

lock:
	@scripts/bootstrap requirements/dev.txt
	scripts/lock

release:
	@scripts/bootstrap requirements/dev.txt
	@scripts/release "$(VERSION)"

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
