"""The native build. All else about the distribution stands in pyproject.toml.

`csrc/build_native.py` compiles the optional native libraries, where there is a compiler.
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "csrc"))  # build backends import from nowhere in the source tree
from build_native import BuildNative, TaggedWheel, extensions

setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "bdist_wheel": TaggedWheel})
