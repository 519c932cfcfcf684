"""`python -m tests.faults [--row NAME] [--rounds N] [--seed S] [--short]`."""

import argparse
import sys

import anyio

from tests.faults.report import Plan, any_seed
from tests.faults.rows import ROWS
from tests.support import planted_secrets


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description="Break the server.")
    parser.add_argument("--row", action="append", metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, help="of each row, instead of the full number")
    parser.add_argument("--short", action="store_true", help="as many rounds as CI runs")
    parser.add_argument("--seed", type=int, default=any_seed())
    options = parser.parse_args()
    chosen = [name for name in ROWS if not options.row or _is_asked_for(name, options.row)]
    if not chosen:
        parser.error(f"there is no such row; there are {', '.join(ROWS)}")
    plan = Plan(options.seed, is_full=not options.short, count=options.rounds)
    say(f"seed {plan.seed}")
    planted_secrets.turn_on()
    failed: list[str] = []
    for name in chosen:
        report = anyio.run(ROWS[name], plan)
        say(str(report))
        failed += [name] if report.wrongs else []
    for line in planted_secrets.summary():
        say(line)
    failed += ["planted secrets"] if planted_secrets.hits else []
    say(f"failed: {', '.join(failed)}" if failed else "all rows are ok")
    return 1 if failed else 0


def _is_asked_for(name: str, rows: list[str]) -> bool:
    return any(name == row or name.startswith(f"{row}-") for row in rows)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
