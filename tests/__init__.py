"""Importing `app.main` reads the environment; tests read this one, not the developer's."""

import atexit
import os
import shutil
import tempfile

_OURS = (
    "APP_ENV DATABASE_URL OPENAI_API_KEY OPENAI_BASE_URL ADMIN_API_KEY STT_BASE_URL TTS_BASE_URL "
    "CHAT_PROVIDER STT_PROVIDER TTS_PROVIDER DATA_DIR HOST PORT"
)
for name in _OURS.split():
    os.environ.pop(name, None)
os.environ["DATA_DIR"] = tempfile.mkdtemp(prefix="agent-platform-tests-")
atexit.register(shutil.rmtree, os.environ["DATA_DIR"], ignore_errors=True)
