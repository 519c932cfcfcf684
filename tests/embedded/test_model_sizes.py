"""The documents say how much is downloaded as the manifest does."""

import re
from pathlib import Path

import pytest

from app.services.local_service.manifest import SETS
from app.services.local_service.progress import MB

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", ".env.example", "docs/embedded.md", "docs/docker.md")


@pytest.mark.parametrize("page", PAGES)
def test_sizes_of_the_models_are_those_of_the_manifest(page: str) -> None:
    lines = (ROOT / page).read_text().splitlines()
    about_models = [line for line in lines if re.search("download|EMBEDDED_MODELS", line)]
    figures = {int(mb) for line in about_models for mb in re.findall(r"\b(\d{3,}) MB", line)}

    assert figures == {model_set.size_bytes // MB for model_set in SETS.values()}
