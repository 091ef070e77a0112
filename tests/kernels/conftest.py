"""`bench` is not installed: its interpreter is imported from the repository's root, as tests/bench does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
