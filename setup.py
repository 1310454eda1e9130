"""Native extensions. Everything else is in pyproject.toml.

``CONTNET_FAST_BUILD`` is ``auto`` (build what can be built), ``cpu`` (fail if it cannot) or ``none``.
``CONTNET_FAST_SANITIZE=1`` builds with the address and undefined-behaviour sanitizers (``make sanitize``).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from glob import glob
from typing import Any

from setuptools import setup

CHOICES = ("auto", "cpu", "none")
X86 = platform.machine().lower() in ("x86_64", "amd64")
SOURCES = [*sorted(glob("csrc/*.cpp")), *sorted(glob("csrc/cpu/*.cpp"))]
RELATED = ["setup.py", *sorted(glob("csrc/**/*.h", recursive=True))]  # a change of these builds it anew


def say(text: str) -> None:
    """One line of the build log."""
    print(f"contnet_fast: {text}", file=sys.stderr)


def extensions() -> dict[str, Any]:
    """The arguments of ``setup`` for the C++ extension, or none with one line that says why."""
    wanted = os.environ.get("CONTNET_FAST_BUILD", "auto")
    if wanted not in CHOICES:
        sys.exit(f"CONTNET_FAST_BUILD: got {wanted!r}, accepted: {', '.join(CHOICES)}")
    if wanted == "none":
        say("no C++ extension (CONTNET_FAST_BUILD=none)")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return refuse(wanted, f"torch is not importable in the build ({error}); install with --no-build-isolation")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        return refuse(wanted, f"no C++ compiler ({compiler})")

    class Build(BuildExtension):  # type: ignore[misc,valid-type]
        """A failed build leaves a working package, unless the extension was asked for by name."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted != "auto":
                    raise
                say(f"no C++ extension: the build failed ({str(error).splitlines()[0]})")
                self.extensions = []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    # neither of the -fno flags changes a result; without them comparisons do not vectorise
    flags = ["-O3", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
    flags += [f'-DCONTNET_FAST_COMPILER="{compiler}"']
    links = ["-fopenmp"]
    if os.environ.get("CONTNET_FAST_SANITIZE") == "1":
        flags += (checks := ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"])
        links += checks
    else:
        flags.append("-g0")  # Python's own flags ask for debug information: 13 MB of it
    if X86:
        flags.append("-DCONTNET_FAST_X86")
    say("building the C++ extension")
    extension = CppExtension(
        "contnet_fast._C", SOURCES, extra_compile_args=flags, extra_link_args=links, depends=RELATED
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}


def refuse(wanted: str, reason: str) -> dict[str, Any]:
    """No extension: an error if it was asked for."""
    if wanted != "auto":
        sys.exit(f"CONTNET_FAST_BUILD={wanted}: {reason}")
    say(f"no C++ extension: {reason}")
    return {}


setup(**extensions())
