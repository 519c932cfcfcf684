"""How the process logs: one line per event to standard error; no message text, key or token."""

import logging
import logging.config


def configure_logging(level: str) -> None:
    """Set up logging for the whole process; `level` is a name in small letters."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "app": {"level": level.upper()},
                "uvicorn": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
                "uvicorn.access": {"level": "WARNING"},
            },
        }
    )
