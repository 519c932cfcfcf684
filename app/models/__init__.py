"""Every table. Importing this package is enough for Alembic to see them all."""
