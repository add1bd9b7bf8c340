"""The compiled kernels of ``cpp``: built once by the C++ compiler, kept in the user's cache, loaded when asked for.

One shared library an activation, from ``cpp_kernels.cpp``. The folder that holds them is named after the source, the
flags and the processor: what was built for another is never loaded. No package of Python or torch takes part in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.caching import cache_folder
from hf_gelu_patch.errors import ImplementationUnavailableError
from hf_gelu_patch.implementations.normal_tail import MILLS

__all__ = ["Kernel", "kernel", "missing"]

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
    if not compiler and not os.path.isdir(_folder()):  # noqa: PTH112  # which raises nothing
        return _NO_COMPILER
    return _failed.get(compiler)


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
"""What each compiler, or none, could not do here."""
_building = threading.Lock()
_NO_COMPILER = "there is no C++ compiler (install g++ or clang++, or set CXX)"


def _load(activation: str) -> Kernel:
    if (lack := missing()) is not None:
        raise ImplementationUnavailableError(f"the implementation 'cpp' cannot run: {lack}.")
    try:
        return _kept(_library(activation)) or _built(activation)
    except OSError as error:
        raise _failure(f"the kernel of {activation} cannot be compiled or loaded", str(error)) from error


def _failure(failed: str, said: str) -> ImplementationUnavailableError:
    """The error to raise. ``missing`` tells of it from then on."""
    _failed[_compiler()] = failed
    return ImplementationUnavailableError(f"{failed}. It said:\n{said}")


def _kept(path: Path) -> Kernel | None:
    """The kernel that was compiled before; None where there is none that can be loaded: it is compiled anew."""
    try:
        if path.is_file() and _trusted(path) and _trusted(path.parent) and _whole(path):
            return _opened(path)
    except OSError:
        pass
    return None


def _built(activation: str) -> Kernel:
    """The kernel, compiled beside where it is kept and moved there: nobody ever loads half of one."""
    path = _library(activation)
    compiler = _compiler()
    if not compiler:
        raise _failure(f"no kernel of {activation} that can be loaded is in {path.parent}", f"{_NO_COMPILER}.")
    folder = _kept_in(path.parent)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place, path.name)
        _compile(activation, compiler, [*_flags(), *_defined(activation), str(_SOURCE), "-o", str(made)])
        made.chmod(0o755)  # whatever the umask: what others may write to is not loaded
        run = _opened(made)
        if folder is not None:
            made.replace(path)
    return run


def _kept_in(folder: Path) -> Path | None:
    """The folder, made if it was not there. None where it cannot be written to, or others can write to it: a kernel
    that is compiled there serves this process alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _trusted(folder) and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def _opened(path: Path) -> Kernel:
    """The function of a library.

    Raises:
        OSError: it cannot be loaded, or has no such function.
    """
    try:
        run = ctypes.CDLL(str(path)).hf_gelu_patch_run
    except AttributeError as error:
        raise OSError(str(error)) from error
    number, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    run.argtypes = [number, number, size, size, pointer, pointer, number]
    run.restype = None
    return run


def _compile(activation: str, compiler: tuple[str, ...], arguments: list[str]) -> None:
    try:
        done = subprocess.run([*compiler, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-12:]) or f"nothing, and its status was {done.returncode}"
        failed = f"{' '.join(compiler)} could not compile the kernel of {activation} (set CXX to another compiler)"
        raise _failure(failed, said)


def _compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: what ``CXX`` says, or the first that is there; empty where there is none."""
    return next((one for one in _compilers() if one and shutil.which(one[0])), ())


def _compilers() -> Iterator[tuple[str, ...]]:
    if named := os.environ.get("CXX"):
        yield (named,)  # a path may have spaces
        with contextlib.suppress(ValueError):  # an open quotation mark
            yield tuple(shlex.split(named))
    yield from (("g++",), ("clang++",), ("c++",))


def _flags() -> list[str]:
    return [*_FLAGS, *_NO_TRAPS, _NATIVE[platform.machine()]]


def _defined(activation: str) -> list[str]:
    compiled = ACTIVATIONS[activation].cpp
    assert compiled is not None
    shift, coefficients = MILLS["float32"]
    written = ",".join(f"{one!r}f" for one in coefficients)
    return [f"-DACTIVATION={compiled.function}", f"-DMILLS_SHIFT={shift!r}f", f"-DMILLS={{{written}}}"]


def _library(activation: str) -> Path:
    return _folder() / f"{activation}.so"


def _folder() -> Path:
    """Where the kernels for this source, these flags and this processor are kept."""
    try:
        return cache_folder() / f"kernels-{_key()}"
    except RuntimeError:  # this user has no home
        return Path(tempfile.gettempdir()) / f"hf_gelu_patch-{os.getuid()}" / f"kernels-{_key()}"


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


def _whole(path: Path) -> bool:
    """Whether a library's table of sections, which ends its file, is there. To load a part of one kills the process."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF"):
        return False
    start: int = struct.unpack_from("<Q", head, 40)[0]
    size, number = struct.unpack_from("<2H", head, 58)
    end: int = start + size * number
    return path.stat().st_size >= end
