"""A self-hosted backend for AI agents that talk, in text and by voice.

Layers, each of which imports only from those after it: `main` and `cli`, `admin_cli` and `server`,
`state`, `providers` and `routers`, `http`, `schemas` and `services`, `models`, `core`.
"""

__version__ = "0.2.0"
