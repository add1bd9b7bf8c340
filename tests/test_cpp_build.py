"""How the kernels of ``cpp`` are compiled, kept, and done without."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from conftest import KERNELS
from torch import nn

from hf_gelu_patch import patch
from hf_gelu_patch.implementations import cpp_build

Run = Callable[..., str]
Counted = tuple[str, Callable[[], int]]

pytestmark = [KERNELS, pytest.mark.slow]

START = """
import os, sys, tempfile, warnings
from pathlib import Path
import torch
from torch import nn
import torch.nn.functional as F
from hf_gelu_patch import ImplementationUnavailableError, find_sites, patch, unpatch
from hf_gelu_patch.implementations import cpp_build, cpp_ops
from hf_gelu_patch.implementations.measured import processors

processors.cpu = lambda: "CPU of the tests"  # unmeasured
tempfile.tempdir = None  # that of TMPDIR

def model(act=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), act or nn.ReLU())

def right(one):
    x = torch.randn(10_000, 8)  # enough for a kernel
    with torch.no_grad():
        return torch.allclose(one(x), one[1].forward(F.linear(x, one[0].weight, one[0].bias)), atol=1e-6)
"""
IS_PATCHED = """
one = model()
print(patch(one, implementation="cpp").sites[0].implementation, right(one))
"""
FALLS_BACK = """
one = model(nn.GELU(approximate="tanh"))
for asked in ("cpp", "auto"):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = dict(vars(one)), type(one)
        try:
            print("patched by", {site.implementation for site in patch(one, implementation=asked).sites})
            unpatch(one)
        except ImplementationUnavailableError as error:
            print(error)
        print(type(one) is before[1], right(one))
print(cpp_build.missing())
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """What a process prints whose cache is a folder of the test's."""

    def run(code: str, **environment: str | None) -> str:
        values = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}
        kept = {name: value for name, value in values.items() if value is not None and name != "TRITON_INTERPRET"}
        done = processes.run("-c", START + textwrap.dedent(code), env=kept)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of one kernel, compiled for these tests."""
    cache = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = processes.run("-c", START + "cpp_build.kernel('relu')", env=environment)
    assert done.returncode == 0, done.stderr
    (library,) = cache.rglob("*.so")
    return library


@pytest.fixture
def kept(tmp_path: Path, compiled: Path) -> Path:
    """A copy of it where a process of the test's looks for it."""
    folder = tmp_path / "cache" / compiled.parent.relative_to(compiled.parents[2])
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    return Path(shutil.copy2(compiled, folder))


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def counted(tmp_path: Path, compiled: Path) -> Counted:
    """A compiler that has compiled already, and keeps count of its calls."""
    calls, copied = tmp_path / "calls", shutil.copy2(compiled, tmp_path)
    said = script(
        tmp_path / "counted", f'echo once >>"{calls}"; for last; do :; done; cat "{copied}" >"$last"; chmod +x "$last"'
    )
    return said, lambda: len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))


def test_nothing_is_compiled_before_a_patch_needs_it_and_then_once(run: Run, tmp_path: Path, counted: Counted) -> None:
    compiler, calls = counted
    said = run(
        """
        print(find_sites(model(), implementation="cpp").sites[0].implementation)
        print(cpp_build.missing(), list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*")))
        """,
        CXX=compiler,
    )
    assert said.split("\n")[:2] == ["cpp", "None []"]
    assert calls() == 0
    for _ in range(2):
        assert run(IS_PATCHED, CXX=compiler) == "cpp True\n"
        assert left(tmp_path / "cache") == ["relu.so"]
        assert calls() == 1
    folder = next((tmp_path / "cache").rglob("relu.so")).parent
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_wide_umask_compiles_it_once_too(run: Run, counted: Counted) -> None:
    """Files that a group may write to are the rule where each user has a group of their own."""
    compiler, calls = counted
    for _ in range(2):
        assert run("os.umask(0o002)" + IS_PATCHED, CXX=compiler) == "cpp True\n"
    assert calls() == 1


def test_many_processes_at_once_leave_one_good_library(run: Run, tmp_path: Path) -> None:
    said = run(
        """
        for _ in range(4):
            if os.fork() == 0:
                os._exit(0 if cpp_build.kernel("relu") else 1)
        print([os.wait()[1] for _ in range(4)])
        one = model()
        patch(one, implementation="cpp")
        print(right(one))
        """
    )
    assert said == "[0, 0, 0, 0]\nTrue\n"
    assert left(tmp_path / "cache") == ["relu.so"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 1", r"not compile the kernel of gelu_tanh \(set CXX to another compiler\). It said:\nnothing, and"),
        ("echo 'no such instruction' >&2; exit 3", "It said:\nno such instruction"),
        ("exit 0", "the kernel of gelu_tanh cannot be compiled or loaded. It said:\n.*No such file"),
        ("for last; do :; done; echo nonsense >\"$last\"", "the kernel of gelu_tanh cannot be compiled or loaded"),
        ("exec g++ -shared -x c++ -o \"$(for last; do :; done; echo $last)\" /dev/null", "undefined symbol"),
    ],
    ids=["silent", "speaking", "making nothing", "making nonsense", "making another library"],
)  # fmt: skip
def test_a_compiler_that_fails(run: Run, tmp_path: Path, body: str, said: str) -> None:
    out = run(FALLS_BACK, CXX=script(tmp_path / "compiler", body))
    named, by_auto = out.split("patched by")
    assert re.search(said, named), named
    assert named.endswith("True True\n")
    assert by_auto.startswith(" {'aten'}\nTrue True\n") or by_auto.startswith(" {None}\nTrue True\n")
    assert "the kernel of gelu_tanh" in by_auto  # what missing says from then on
    assert left(tmp_path / "cache") == [] or left(tmp_path / "cache")[0].startswith("kernels-")


def test_no_compiler(run: Run, tmp_path: Path) -> None:
    out = run(FALLS_BACK, PATH=str(tmp_path), CXX=None)
    remedy = "there is no C++ compiler (install g++ or clang++, or set CXX)"
    named, by_auto = out.split("patched by")
    assert remedy in named
    assert named.endswith("True True\n")
    assert by_auto.endswith(f"True True\n{remedy}\n")


def test_no_compiler_and_a_cache_without_this_kernel(run: Run, tmp_path: Path, kept: Path) -> None:
    out = run(IS_PATCHED + FALLS_BACK, PATH=str(tmp_path), CXX=None)
    assert out.startswith("cpp True\n")  # the one that is there
    assert f"no kernel of gelu_tanh that can be loaded is in {kept.parent}" in out
    assert "install g++ or clang++, or set CXX" in out
    assert out.count("True True\n") == 2
    out = run(FALLS_BACK.replace('("cpp", "auto")', '("auto",)'), PATH=str(tmp_path), CXX=None)
    assert "True True" in out


def test_a_model_brought_to_where_no_kernel_can_be_had(run: Run, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 8), nn.GELU(approximate="tanh"))
    x = torch.randn(5000, 8)  # enough for a kernel
    expected = model(x)
    patch(model, implementation="cpp")
    torch.save((model, x, expected), tmp_path / "model.pt")
    out = run(
        f"""
        one, x, expected = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                print(torch.allclose(one(x), expected, atol=1e-6))
                with torch.no_grad():
                    print(torch.allclose(one(x), expected, atol=1e-6))
        for one in said:
            print(one.category.__name__, one.message)
        """,
        PATH=str(tmp_path),
        CXX=None,
    )
    *numbers, warned = out.splitlines()
    assert numbers == ["True"] * 4
    assert warned.startswith("RuntimeWarning gelu_tanh is computed by aten")
    assert "there is no C++ compiler (install g++ or clang++, or set CXX)" in warned
    assert "unpatch(model) and patch it here anew" in warned


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "nonsense": lambda path: path.write_bytes(b"nonsense " * 999),
    "the head of one": lambda path: path.write_bytes(path.read_bytes()[:80]),
    "half of one": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "of others": lambda path: path.chmod(0o777),
    "a damaged head": lambda path: path.write_bytes(path.read_bytes()[:18] + b"\xff" * 2 + path.read_bytes()[20:]),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_library_that_cannot_be_trusted_or_loaded_is_compiled_anew(
    run: Run, counted: Counted, kept: Path, how: str
) -> None:
    compiler, calls = counted
    assert run(IS_PATCHED, CXX=compiler) == "cpp True\n"
    assert calls() == 0
    SPOILT[how](kept)
    for _ in range(2):
        assert run(IS_PATCHED, CXX=compiler) == "cpp True\n"
        assert calls() == 1
    SPOILT[how](kept)
    out = run(FALLS_BACK.replace('nn.GELU(approximate="tanh")', "nn.ReLU()"), PATH="/nowhere", CXX=None)
    assert f"no kernel of relu that can be loaded is in {kept.parent}" in out


def test_where_others_may_write_a_private_folder_is_used(
    run: Run, tmp_path: Path, counted: Counted, kept: Path
) -> None:
    compiler, calls = counted
    kept.parent.chmod(0o777)
    private = tmp_path / "private"
    private.mkdir()
    before = kept.stat()
    for count in (1, 2):
        assert run(IS_PATCHED, CXX=compiler, TMPDIR=str(private)) == "cpp True\n"
        assert calls() == count
        assert list(private.iterdir()) == []
    assert (kept.stat().st_ino, kept.stat().st_mtime) == (before.st_ino, before.st_mtime)


def test_a_cache_that_cannot_be_made(run: Run, tmp_path: Path, counted: Counted) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    private = tmp_path / "private"
    private.mkdir()
    compiler, calls = counted
    for where in ({"XDG_CACHE_HOME": str(tmp_path / "file")}, {"XDG_CACHE_HOME": None, "HOME": str(tmp_path / "file")}):
        assert run(IS_PATCHED, CXX=compiler, TMPDIR=str(private), **where) == "cpp True\n"
    assert calls() == 2
    assert list(private.iterdir()) == []
    home = tmp_path / "no home yet"
    assert run(IS_PATCHED, CXX=compiler, XDG_CACHE_HOME=None, HOME=str(home)) == "cpp True\n"
    assert left(home) == ["relu.so"]


def test_nowhere_to_write_is_an_error_that_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = run('import tempfile; tempfile.tempdir = "/nowhere"' + FALLS_BACK, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "the kernel of gelu_tanh cannot be compiled or loaded. It said:" in out
    assert "/nowhere" in out
    assert out.count("True True\n") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", [None, "/root"])
def test_a_user_without_a_home(run: Run, tmp_path: Path, counted: Counted, home: str | None) -> None:
    """As in a container that is given any user's number."""
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "popen-", "pytest-")):  # pytest's own
            folder.chmod(0o755)
    compiler, _ = counted
    (tmp_path / "calls").touch()
    (tmp_path / "calls").chmod(0o666)
    said = run("os.setuid(54321)" + IS_PATCHED, CXX=compiler, TMPDIR=str(own), XDG_CACHE_HOME=None, HOME=home)
    assert said == "cpp True\n"
    assert left(own) == (["relu.so"] if home is None else [])


def test_what_cxx_may_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = shutil.which(cpp_build._compiler()[0])
    assert own is not None
    spaced = tmp_path / "my compiler"
    spaced.symlink_to(own)
    for said, command in (
        (str(spaced), (str(spaced),)),
        (f"'{spaced}' -O2", (str(spaced), "-O2")),
        (f"{own} -O2  -g", (own, "-O2", "-g")),
        (f"/usr/bin/env {own}", ("/usr/bin/env", own)),
        (own, (own,)),
    ):
        monkeypatch.setenv("CXX", said)
        assert cpp_build._compiler() == command
    for said in ("", " ", "'", "/no/such/compiler"):
        monkeypatch.setenv("CXX", said)
        assert shutil.which(cpp_build._compiler()[0])


def test_arguments_and_spaces_in_use(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    compiler = script(folder / "a compiler", f'touch "{folder}/called"; exec {cpp_build._compiler()[0]} "$@"')
    cache = str(folder / "my cache")
    assert run(IS_PATCHED, CXX=f"'{compiler}' -g0", XDG_CACHE_HOME=cache) == "cpp True\n"
    assert (folder / "called").exists()
    assert left(folder / "my cache") == ["relu.so"]
