"""What a compiled kernel takes of the device, read from its machine code.

cuobjdump tells its registers and memory, nvdisasm its instructions. Both come with Triton's NVIDIA backend.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

TOOLS = ("cuobjdump", "nvdisasm")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """Of one kernel. Bytes of stack and local memory are per thread, those of shared memory per program."""

    registers: int  # per thread
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    tensor_memory_columns: int  # sm_100's memory for accumulators
    warps: int
    instructions: Counter[str]  # occurrences in the machine code, not executions
    epilogue: int = 0  # instructions behind the last product of a warp group (sm_90), in the order of the code

    def count(self, pattern: str) -> int:
        """Instructions whose name matches, such as "UTC*MMA"."""
        return sum(number for name, number in self.instructions.items() if fnmatchcase(name, pattern))


def tool(name: str) -> str:
    """Path of a tool: Triton's own, else that on the PATH.

    Raises:
        FileNotFoundError: neither exists.
    """
    triton = importlib.util.find_spec("triton")
    folders = [Path(folder) for folder in triton.submodule_search_locations] if triton else []
    bundled = [path for folder in folders if (path := folder / "backends" / "nvidia" / "bin" / name).is_file()]
    found = str(bundled[0]) if bundled else shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"{name} is neither in Triton's package nor on the PATH; install the binary utilities of the CUDA toolkit."
        )
    return found


def read_usage(text: str) -> tuple[int, int, int]:
    """Registers, bytes of stack and bytes of local memory, from `cuobjdump -res-usage`; the most of any function.

    Raises:
        ValueError: the text names none.

    >>> read_usage(" Function combine_kernel:\\n  REG:40 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:592")
    (40, 8, 0)
    """
    found = re.findall(r"\bREG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if not found:
        raise ValueError(f"cuobjdump named no registers: {text.strip()[:200]!r}")
    registers, stack, local = (max(int(number) for number in column) for column in zip(*found, strict=True))
    return registers, stack, local


def count_instructions(text: str) -> Counter[str]:
    """How often each instruction occurs, from nvdisasm; modifiers behind the first dot are left out.

    >>> count_instructions("/*0e60*/  @UP3 UTMALDG.2D [UR4], [UR18] ;")
    Counter({'UTMALDG': 1})
    """
    return Counter(_INSTRUCTION.findall(text))


def count_epilogue(text: str) -> int:
    """Instructions behind the last HGMMA, from nvdisasm; 0 where there is none.

    >>> count_epilogue("/*0e60*/  HGMMA.64x128x16.F32.BF16 R24 ;\\n/*0e70*/  FFMA R0 ;\\n/*0e80*/  @P0 EXIT ;")
    2
    """
    names = _INSTRUCTION.findall(text)
    return names[::-1].index("HGMMA") if "HGMMA" in names else 0


def resources_of(compiled) -> Resources:
    """Of a kernel that Triton compiled.

    Raises:
        FileNotFoundError: a tool is missing.
        RuntimeError: a tool failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        registers, stack, local = read_usage(_output(tool("cuobjdump"), "-res-usage", str(binary)))
        listing = _output(tool("nvdisasm"), "-c", "-ndf", str(binary))
    metadata = compiled.metadata
    tensor_memory = getattr(metadata, "tmem_size", None) or 0
    return Resources(
        registers,
        stack,
        local,
        metadata.shared,
        tensor_memory,
        metadata.num_warps,
        count_instructions(listing),
        count_epilogue(listing),
    )


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout
