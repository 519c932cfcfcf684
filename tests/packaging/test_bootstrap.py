"""scripts/bootstrap: the installer comes with a hash, and the command reaches the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from app import __version__

ROOT = Path(__file__).parents[2]


def test_installer_is_pinned_and_every_file_of_it_has_a_hash() -> None:
    script = (ROOT / "scripts" / "bootstrap").read_text()
    pinned = (ROOT / "requirements" / "uv.txt").read_text()

    assert re.search(r"--require-hashes --requirement requirements/uv\.txt", script)
    (name,) = re.findall(r"^([^\s#]\S*) ", pinned, re.MULTILINE)
    assert name == (ROOT / "requirements" / "uv.in").read_text().strip()
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", pinned)) > 1


def test_command_runs_the_checkout_from_any_folder(tmp_path: Path) -> None:
    checkout = tmp_path / "check out"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / ".venv" / "stamps").mkdir()
    (checkout / "requirements").mkdir()
    (checkout / "app").symlink_to(ROOT / "app")
    (checkout / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap", checkout / "scripts")
    lock = checkout / "requirements" / "runtime.txt"
    lock.write_text("")
    with lock.open() as content:
        stamp = subprocess.run(["cksum"], stdin=content, capture_output=True, check=True).stdout
    (checkout / ".venv" / "stamps" / "runtime.txt").write_bytes(stamp)
    subprocess.run([checkout / "scripts" / "bootstrap", "requirements/runtime.txt"], check=True)
    link = tmp_path / "linked"
    link.symlink_to(checkout / ".venv" / "bin" / "agent-platform")
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))

    ran = subprocess.run(
        [link, "--version"],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout == f"agent-platform {__version__}\n", ran.stderr
