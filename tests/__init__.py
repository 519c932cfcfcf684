"""Importing `app.main` reads the environment; tests read this one, not the developer's."""
