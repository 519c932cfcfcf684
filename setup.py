"""Names the packages of the wheel; everything else is in `pyproject.toml`.

The migrations lie in `alembic/`, where the `alembic` command of a checkout finds them, and are
installed as data of the package `app`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["app*"]), "app.migrations", "app.migrations.versions"],
    package_dir={"app.migrations": "alembic"},
)
