"""The compiled kernels of ``cpp``: built once by the C++ compiler, kept in the user's cache, loaded when asked for.

One shared library an activation, from ``cpp_kernels.cpp``. The folder that holds them is named after the source, the
flags and the processor: what was built for another is never loaded. No package of Python or torch takes part in it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.caching import cache_folder
from hf_gelu_patch.errors import ImplementationUnavailableError
from hf_gelu_patch.implementations.normal_tail import MILLS

__all__ = ["built", "kernel", "missing"]

Kernel = Callable[..., None]

_SOURCE = Path(__file__).with_name("cpp_kernels.cpp")
_NATIVE = {"x86_64": "-march=native", "aarch64": "-mcpu=native"}
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-ffp-contract=fast")
# Floating-point errors set no flag and no errno: without that the compiler leaves comparisons out of its vectors.
_NO_TRAPS = ("-fno-math-errno", "-fno-trapping-math")
_SECONDS = 300


def missing() -> str | None:
    """What this machine lacks to run compiled kernels, or None."""
    if sys.platform != "linux" or platform.machine() not in _NATIVE:
        return f"its kernels are compiled on Linux for {' and '.join(_NATIVE)} only"
    compiler = _compiler()
    if compiler is None:
        return None if _folder().is_dir() else "there is no C++ compiler (install g++ or clang++, or set CXX)"
    return _failed.get(tuple(compiler))


def built(activation: str) -> bool:
    """Whether the kernel of an activation is there, without compiling it."""
    return missing() is None and _library(activation).is_file()


def kernel(activation: str) -> Kernel:
    """The kernel of an activation, compiled if it never was: about 3 s, once for each kind of processor.

    It is called with the form, the dtype, the rows, the columns, the tensors' addresses and row strides, the
    constants and the number of threads, as ``cpp_kernels.cpp`` says.

    Raises:
        ImplementationUnavailableError: it cannot be compiled or loaded; the message says why.
    """
    if (found := _loaded.get(activation)) is None:
        with _building:
            if (found := _loaded.get(activation)) is None:
                found = _loaded[activation] = _load(activation)
    return found


_loaded: dict[str, Kernel] = {}
_failed: dict[tuple[str, ...], str] = {}
"""What each compiler could not do here."""
_building = threading.Lock()


def _load(activation: str) -> Kernel:
    if (lack := missing()) is not None:
        raise ImplementationUnavailableError(f"the implementation 'cpp' cannot run: {lack}.")
    path = _library(activation)
    if not (path.is_file() and _trusted(path) and _trusted(path.parent)):
        path = _build(activation, path)
    try:
        run = ctypes.CDLL(str(path)).hf_gelu_patch_run
    except OSError as error:
        raise ImplementationUnavailableError(
            f"the compiled kernel {path} cannot be loaded: {error}. Delete it, and it is compiled anew."
        ) from error
    number, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    run.argtypes = [number, number, size, size, pointer, pointer, number]
    run.restype = None
    return run


def _build(activation: str, path: Path) -> Path:
    """The library, compiled beside where it belongs and moved there: nobody ever loads half of one."""
    compiler = _compiler()
    if compiler is None:
        raise ImplementationUnavailableError(
            f"the compiled kernel of {activation} is not in {path.parent}, and there is no C++ compiler to make it "
            "(install g++ or clang++, or set CXX)."
        )
    folder = _kept_in(path.parent)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place, path.name)
        _compile(activation, compiler, [*_flags(), *_defined(activation), str(_SOURCE), "-o", str(made)])
        made.replace(folder / path.name)
    return folder / path.name


def _kept_in(folder: Path) -> Path:
    """The folder, made if it was not there. One that serves this process alone, where that cannot be written, or others
    can write there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _trusted(folder) and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="hf_gelu_patch-"))


def _compile(activation: str, compiler: list[str], arguments: list[str]) -> None:
    try:
        done = subprocess.run([*compiler, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
        said = "\n".join(done.stderr.strip().splitlines()[-12:]) if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said is not None:
        failed = f"{' '.join(compiler)} could not compile the kernel of {activation} (set CXX to another compiler)"
        _failed[tuple(compiler)] = failed
        raise ImplementationUnavailableError(f"{failed}. It said:\n{said}")


def _compiler() -> list[str] | None:
    """The command of the C++ compiler: what ``CXX`` says, or the first that is there."""
    named = os.environ.get("CXX", "").split()
    for command in ([named] if named else []) + [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    return None


def _flags() -> list[str]:
    return [*_FLAGS, *_NO_TRAPS, _NATIVE[platform.machine()]]


def _defined(activation: str) -> list[str]:
    shift, coefficients = MILLS["float32"]
    written = ",".join(f"{one!r}f" for one in coefficients)
    return [f"-DACTIVATION={ACTIVATIONS[activation].cpp}", f"-DMILLS_SHIFT={shift!r}f", f"-DMILLS={{{written}}}"]


def _library(activation: str) -> Path:
    return _folder() / f"{activation}.so"


def _folder() -> Path:
    """Where the kernels for this source, these flags and this processor are kept."""
    return cache_folder() / f"kernels-{_key()}"


@functools.cache
def _key() -> str:
    told = [_SOURCE.read_text(encoding="utf-8"), *_flags(), *_defined("gelu"), platform.machine(), _features()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _features() -> str:
    """What instructions the processor has, as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _trusted(path: Path) -> bool:
    """Whether nobody but this user or root can have written it."""
    about = path.stat()
    return about.st_uid in (os.getuid(), 0) and not about.st_mode & 0o022
