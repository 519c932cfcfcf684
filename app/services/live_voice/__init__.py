"""Live voice: a line that listens, lets the turn engine answer, and can be interrupted.

It knows neither sockets nor JSON: it takes samples and calls, and yields events of its own.
"""

from app.services.live_voice.service import LiveService

__all__ = ["LiveService"]
