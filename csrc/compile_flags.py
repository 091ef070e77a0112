"""How `csrc/cpu` is compiled: by setup.py, and by the tests for one instruction set at a time.

No -march: the sources choose an instruction set at run time. No -ffast-math: NaN and infinities have meanings here.
Of what it stands for, only this is given up: that a comparison with NaN raises a flag of the processor, which nobody
reads. Without that, GCC computes exponentials one by one on processors before AVX-512, five times slower.
"""

COMPILE = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]
OPENMP = ["-fopenmp"]
WITHOUT_OPENMP = ["-Wno-unknown-pragmas"]
