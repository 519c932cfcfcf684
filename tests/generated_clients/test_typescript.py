"""The types that openapi-typescript generates compile strictly, and say the truth.

They are those of the TypeScript client, which a test of its own compares with the OpenAPI document.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.generation import TYPESCRIPT_TYPES
from tests.support.generators import node, node_modules

PROGRAM = Path(__file__).with_name("program.ts")


@pytest.mark.timeout(600)  # packages are downloaded once
def test_generated_types_compile_strictly(tmp_path: Path) -> None:
    shutil.copy(TYPESCRIPT_TYPES, tmp_path / "schema.ts")
    shutil.copy(PROGRAM, tmp_path)
    compiler = [node(), str(node_modules() / "typescript" / "bin" / "tsc")]
    strict = ["--strict", "--noEmit", "--exactOptionalPropertyTypes", "--skipLibCheck"]
    target = ["--target", "es2022", "--module", "nodenext"]

    compiled = subprocess.run(
        [*compiler, *strict, *target, str(tmp_path / PROGRAM.name)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (compiled.stdout, compiled.returncode) == ("", 0)
