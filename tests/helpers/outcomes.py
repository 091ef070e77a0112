"""What a probe of the doctor may find."""

from __future__ import annotations

from fastflow.doctor.probes import Outcome

WORKS, FAILS = Outcome(True), Outcome(False, error="ImportError: no")
