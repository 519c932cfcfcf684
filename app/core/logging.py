"""How the process logs: one line per event to standard error; no message text, key or token."""

import logging


def configure_logging(level: str) -> None:
    """Set up logging for the whole process; `level` is a name in small letters."""
    stderr = logging.StreamHandler()
    stderr.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    levels = {None: "WARNING", "app": level.upper(), "uvicorn": "INFO", "uvicorn.access": "WARNING"}
    for name, its_level in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(its_level)
        logger.handlers[:] = [stderr] if name in {None, "uvicorn"} else []
    logging.getLogger("uvicorn").propagate = False
