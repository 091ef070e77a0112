"""`bench` is not installed: it is imported from the repository's root, as `python -m bench.kernels` does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
