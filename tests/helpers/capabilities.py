"""What root may do beyond other users, and a process without it."""

from __future__ import annotations

import ctypes


def drop_capabilities() -> None:
    """Take from root what lets it write anywhere; does nothing to other users."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
