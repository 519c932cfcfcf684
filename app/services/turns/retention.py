"""How long what a turn leaves behind is kept; `AUDIO_RETENTION_DAYS` is a setting of its own."""

from datetime import timedelta

EVENT_RETENTION = timedelta(hours=24)
"""Events can be replayed for this long; a turn's answer is kept with its session."""
IDEMPOTENCY_KEY_RETENTION = timedelta(hours=24)
"""A repeated request is recognised for this long."""
SDK_RETRIES = timedelta(minutes=10)
"""OpenAI's SDKs send a request again without a key; within this time it is the same request."""
