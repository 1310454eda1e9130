"""The page that says which backend serves what is what the backends answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_backends_answer():
    command = [sys.executable, "-m", "tools.support_matrix", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}python -m tools.support_matrix writes it"
