"""A stub CUDA driver, on which Triton's own JIT and launchers run without a GPU.

Kernels are compiled for an H100, loaded and launched as on a GPU; ``stub_driver.c`` records each launch instead of
running it, so that outputs hold whatever was in memory. What is real is all that Python and Triton do, and so its cost;
what is missing is the driver's own work, which is the same for every kernel.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("stub_driver.c")
LIBRARY = "libcuda.so.1"

_PARAMETERS = 64


class _Record(ctypes.Structure):
    """The fields of stub_driver.c's Record, in that order."""

    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("parameters", ctypes.c_uint64 * _PARAMETERS),
    )


@dataclass(frozen=True)
class Launch:
    """What a kernel was launched with.

    Attributes:
        kernel: its name in the cubin.
        function: the handle of the loaded kernel: the same for two launches of the same compiled kernel.
        grid: programs in each dimension.
        block: threads in each dimension.
        shared: bytes of shared memory.
        stream: 0 here.
        parameters: the bytes of each kernel parameter as an unsigned integer, pointers first where they stand first.
            What Triton made a constant (a stride of 1) is none, and its two scratch pointers stand last.
    """

    kernel: str
    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    parameters: tuple[int, ...]


class Stub:
    """The launches that the stub driver recorded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.stub_launches.restype = ctypes.c_uint64
        library.stub_record.restype = ctypes.POINTER(_Record)
        library.stub_record.argtypes = [ctypes.c_uint64]
        library.stub_name.restype = ctypes.c_char_p
        library.stub_name.argtypes = [ctypes.c_void_p]

    def launches(self) -> int:
        """How many there have been."""
        count: int = self._library.stub_launches()
        return count

    def last(self) -> Launch:
        """The latest one.

        Raises:
            LookupError: nothing has been launched.
        """
        return self._launch(self.launches() - 1)

    def since(self, count: int) -> list[Launch]:
        """Those after the first ``count``.

        Raises:
            LookupError: that is more than the 64 that are kept.
        """
        return [self._launch(number) for number in range(count, self.launches())]

    def _launch(self, number: int) -> Launch:
        found = self._library.stub_record(number) if number >= 0 else None
        if not found:
            raise LookupError(f"launch {number} is not on record: there have been {self.launches()}, 64 are kept")
        record = found.contents
        return Launch(
            kernel=self._library.stub_name(record.function).decode(),
            function=record.function,
            grid=tuple(record.grid),
            block=tuple(record.block),
            shared=record.shared,
            stream=record.stream,
            parameters=tuple(record.parameters[: record.count]),
        )


def compiler() -> list[str] | None:
    """The command that compiles C, as Triton looks for it; None where there is none."""
    if named := os.environ.get("CC"):
        command = shlex.split(named)
        return command if shutil.which(command[0]) else None
    return next(([found] for name in ("gcc", "clang", "cc") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """The stub driver, compiled into ``folder``.

    Raises:
        RuntimeError: there is no C compiler, or it failed; the message has what it wrote.
    """
    import triton

    command = compiler()
    if command is None:
        raise RuntimeError("the stub driver needs a C compiler: install gcc or clang, or name one in CC")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    path = folder / LIBRARY
    own = folder / f"{LIBRARY}.{os.getpid()}"  # then moved: another process may be loading the one that is there
    options = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,-soname,{LIBRARY}", f"-I{include}"]
    done = subprocess.run([*command, *options, "-o", str(own), str(SOURCE)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} could not compile {SOURCE.name}:\n{done.stderr}")
    return own.replace(path)


def activate(folder: Path | None = None) -> Stub:
    """Have Triton launch on the stub driver, and the package launch for CPU tensors, until this process ends.

    To be called before anything is launched, by Triton or on a GPU by torch, and without TRITON_INTERPRET. There is
    no way back: what Triton compiles from here on holds handles of the stub.

    - Triton finds the stub as libcuda.so.1; its current device is 0, its stream 0, the target sm_90. It compiles into a
      cache of its own.
    - What asks torch.cuda for the device, the stream or the capability is told the same, and ``torch.cuda.device`` does
      nothing: torch has no GPU here.
    - ``hf_gelu_patch.implementations.triton_dispatch`` takes CPU tensors to its kernels, which are
      compiled, not interpreted, and ``patch`` may be asked for ``implementation="triton"`` there.

    Args:
        folder: where the library and Triton's cache are kept for the next time; without one, in a temporary folder
            that goes when the process ends.

    Raises:
        RuntimeError: there is no C compiler; TRITON_INTERPRET is set; Triton has a driver already, or the process has
            loaded NVIDIA's.
    """
    import triton
    from triton.runtime.driver import driver

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels are not launched. Unset it.")
    if driver._active is not None or driver._default is not None:
        raise RuntimeError("Triton has a driver in this process already: activate the stub before anything is launched")
    if LIBRARY in _loaded():
        raise RuntimeError(f"this process has loaded {LIBRARY} already: activate the stub before torch uses the GPU")
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="stub-driver-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    library = ctypes.CDLL(str(build(folder)), mode=ctypes.RTLD_GLOBAL)  # by its soname, what others open as libcuda
    triton.knobs.nvidia.libcuda_path = str(folder)
    triton.knobs.cache.dir = str(folder / "cache")
    _stand_in_for_torch()
    driver.set_active(_driver())
    _launch_for_the_cpu()
    return Stub(library)


def _loaded() -> set[str]:
    """The names of the libraries in this process."""
    maps = Path("/proc/self/maps")
    return {Path(line.split()[-1]).name for line in maps.read_text().splitlines()} if maps.exists() else set()


def _current_device() -> int:
    return 0


def _current_stream(device: int | None = None) -> int:  # noqa: ARG001
    return 0


def _capability(device: Any = None) -> tuple[int, int]:  # noqa: ARG001
    return 9, 0


class _NoDevice:
    """``torch.cuda.device``, of which there is none to change."""

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        pass


def _stand_in_for_torch() -> None:
    import torch

    if hasattr(torch._C, "_cuda_getDeviceCount"):
        with warnings.catch_warnings():  # CUDA's own library misses things in the stub: torch counts no GPU, once
            warnings.simplefilter("ignore")
            torch._C._cuda_getDeviceCount()
    torch.cuda.current_device = _current_device
    torch.cuda.get_device_capability = _capability
    torch.cuda.set_device = lambda device: None  # noqa: ARG005
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)  # noqa: ARG005
    torch.cuda.device = _NoDevice
    torch.cuda.is_available = lambda: False
    torch._C._cuda_getCurrentRawStream = _current_stream
    torch._C._cuda_getDevice = _current_device


def _driver() -> Any:
    from triton.backends.nvidia.driver import CudaDriver

    found = CudaDriver()  # takes what it asks from torch.cuda, as stood in for
    found.get_current_device = _current_device
    found.get_current_stream = _current_stream
    found.get_device_capability = _capability
    return found


def _launch_for_the_cpu() -> None:
    from hf_gelu_patch.implementations import triton_dispatch
    from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS

    triton_dispatch.INTERPRETED = True  # by which the ops tell that CPU tensors have kernels
    triton_dispatch.DEVICES = frozenset({"cuda", "cpu"})
    for name in ("triton", "triton_rounded"):  # so that whole models can be patched with them
        IMPLEMENTATIONS[name] = replace(IMPLEMENTATIONS[name], devices=triton_dispatch.DEVICES)
