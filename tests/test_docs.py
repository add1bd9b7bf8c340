"""The README, the guides and the notes for contributors: their code runs, and what they name is there."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
import re
import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN

import hf_gelu_patch
from hf_gelu_patch import ACTIVATIONS, IMPLEMENTATIONS, Activation, Report, patched
from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.implementations import aten, triton_forms
from hf_gelu_patch.recognition import resolve
from scripts.benchmarking.exports import command as exports
from scripts.benchmarking.gpu import record as gpu_record
from scripts.benchmarking.planted import command as planted
from scripts.covering import record as covering_record

ROOT = Path(__file__).parent.parent
BENCHMARKING = ROOT / "scripts" / "benchmarking"
GUIDES = sorted((ROOT / "hf_gelu_patch" / "guides").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *GUIDES, *sorted((ROOT / ".github").glob("*.md"))]
TEXT = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return [block for found, block in FENCE.findall(text) if found == language]


def spans(text: str) -> list[str]:
    """The pieces of code within sentences and tables."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def flat(name: str) -> str:
    """A document as one line, so that it does not matter where its lines break."""
    return " ".join(TEXT[name].split())


LARGE = aten.LARGE  # as it is outside the tests, which write small tensors in place too
each_document = pytest.mark.parametrize("name", TEXT)


# ---------------------------------------------------------------------------------------------------------------- code


@pytest.fixture
def _models_by_their_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a model's name in the working directory is what from_pretrained loads."""
    shutil.copytree(REFERENCES["gpt2"].model_path(), tmp_path / "openai-community" / "gpt2")
    monkeypatch.chdir(tmp_path)


OWN_TESTS = {"examples.md"}  # in tests/evaluation/test_examples.py, each of its blocks by itself
RUN = [
    name
    for name, text in TEXT.items()
    if (name.islower() or name == "README.md") and name not in OWN_TESTS and blocks(text, "python")
]


@pytest.mark.parametrize("name", RUN)
@pytest.mark.usefixtures("_models_by_their_hub_names")
def test_every_block_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    transformers.logging.set_verbosity_error()
    code = blocks(TEXT[name], "python")
    names: dict[str, object] = {"model": transformers.AutoModelForCausalLM.from_pretrained("openai-community/gpt2")}
    known = set(IMPLEMENTATIONS)
    try:
        for number, block in enumerate(code):
            exec(compile(block, f"{name}, block {number + 1}", "exec"), names)
    finally:
        for added in set(IMPLEMENTATIONS) - known:
            del IMPLEMENTATIONS[added]
    printed = capsys.readouterr().out
    if any("print(patch(model))" in block for block in code):
        assert (
            "3 × GPT2MLP.act  linear  gelu_new → gelu_tanh  aten, rounding; 8 aten ops become one, in place" in printed
        )
    shown = re.findall(r"^# > (.*)$", "\n".join(code), re.MULTILINE)
    assert all(line in printed for line in shown)
    # Python 3.10 has an older transformers, whose source is another.
    for diff in blocks(TEXT[name], "diff") if sys.version_info >= (3, 11) else ():
        lines = diff.splitlines()
        assert len(lines) > 8
        assert [line for line in lines if not line.startswith(("---", "+++", "@@"))] == [
            line for line in printed.splitlines() if line in lines and not line.startswith(("---", "+++", "@@"))
        ][: len(lines) - 3]


def test_there_is_code_to_run() -> None:
    code = [block for name in RUN for block in blocks(TEXT[name], "python")]
    assert len(code) >= 8
    assert len(re.findall(r"^# > ", "\n".join(code), re.MULTILINE)) == 8
    assert sum(len(blocks(text, "diff")) for text in TEXT.values()) == 1


def test_what_contributors_are_shown_is_what_tests_run() -> None:
    places = ("test_adding.py", "evaluation/test_extending.py")
    tests = "\n".join((ROOT / "tests" / place).read_text(encoding="utf-8") for place in places)
    shown = blocks(TEXT["CONTRIBUTING.md"], "python")
    assert len(shown) == 5
    definitions = [one.strip("\n") for block in shown[1:] for one in block.split("\n\n\n")]
    definitions += [one.rstrip("\n") for one in shown[0].split("\n\n\n") if "squareplus(" in one.partition("\n")[0]]
    definitions += re.findall(r"^class .*?(?=\n\n)", shown[0], re.MULTILINE | re.DOTALL)
    assert len(definitions) == 10
    for definition in definitions:
        assert definition in tests or textwrap.indent(definition, "    ") in tests, definition


@pytest.mark.usefixtures("_models_by_their_hub_names")
def test_the_activation_that_contributors_are_shown_is_added_as_it_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers.logging.set_verbosity_error()
    block = blocks(TEXT["CONTRIBUTING.md"], "python")[0]
    required = [one.name for one in dataclasses.fields(Activation) if one.default is dataclasses.MISSING]
    assert len(required) == 5
    assert "The first five fields are required." in flat("CONTRIBUTING.md")
    known = dict(ACTIVATIONS)
    monkeypatch.setitem(ACT2FN, "squareplus", None)
    try:
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})
    finally:
        for added in set(ACTIVATIONS) - set(known):
            del ACTIVATIONS[added]
    assert [f"    {name}=" in block for name in required] == [True] * 5
    [shown] = re.findall(r"^# > (.*)$", block, re.MULTILINE)
    assert shown in capsys.readouterr().out


def test_what_the_patch_prints_is_what_the_readme_shows() -> None:
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    with patched(model) as report:
        assert blocks(TEXT["README.md"], "text")[0].rstrip("\n") == str(report)


# --------------------------------------------------------------------------------------------------- what is mentioned


def anchors(text: str) -> set[str]:
    """What a link can point to within a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "code", FENCE.sub("", TEXT[path.name]))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        assert place.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


@each_document
def test_every_path_is_there(name: str) -> None:
    own = {path.name for path in ROOT.iterdir()}
    for span in [*spans(TEXT[name]), *"\n".join(blocks(TEXT[name], "sh")).split()]:
        for word in re.findall(r"(?<![\w/.])[\w.*-]+/[\w./*-]*", span):
            if word.split("/")[0] in own - {"results", ".venv"}:
                assert list(ROOT.glob(word.rstrip("/"))), f"{word} is not there"


EXAMPLES = {"act", "linear", "conv", "function", "batch"}  # a name for any of its kind


@each_document
def test_every_name_is_one_that_there_is(name: str) -> None:
    public = {attribute: getattr(hf_gelu_patch, attribute) for attribute in hf_gelu_patch.__all__}
    taking = [getattr(hf_gelu_patch, one) for one in ("patch", "find_sites", "audit", "Implementation")] + [
        torch.compile
    ]
    parameters = {parameter for one in taking for parameter in inspect.signature(one).parameters}
    fields = {*dir(Report), *Report.__dataclass_fields__}
    for span in spans(TEXT[name]):
        for dotted in re.findall(r"\bhf_gelu_patch(?:\.[a-z_]\w*)+", span.replace("/", " ")):
            if not dotted.endswith((".py", ".md")):
                importlib.import_module(dotted)
        if re.fullmatch(r"[A-Z]\w+(Error|Warning)", span):
            assert span in public, span
        if match := re.match(r"report\.(\w+)", span):
            assert match[1] in fields, span
        if match := re.match(r"(\w+)=", span):
            assert match[1] in parameters, span
        if match := re.match(r"(\w+)\(", span):
            places = (builtins, torch, nn.Module, transformers.PreTrainedModel)
            assert match[1] in public or match[1] in EXAMPLES or any(hasattr(p, match[1]) for p in places), span


def shell_commands(text: str) -> list[list[str]]:
    """The words of each command in a document's blocks, without what is said behind it."""
    code = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    lines = [re.sub(r"\s#.*", "", line) for line in code.splitlines()]
    return [line.split() for line in lines if line and not line.startswith("#")]


@each_document
def test_every_option_is_one_that_the_command_has(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    helped: dict[str, str] = {}

    def help_of(command: str) -> str:
        if command not in helped:
            with pytest.raises(SystemExit) as stopped:
                main([command, "--help"])
            assert stopped.value.code == 0, command
            helped[command] = capsys.readouterr().out
        return helped[command]

    given = [words for words in [*shell_commands(TEXT[name]), *map(str.split, spans(TEXT[name]))] if words]
    for words in given:
        if words[0] == "hf-gelu-patch" and len(words) > 1:
            for option in (word for word in words[2:] if word.startswith("--")):
                assert f"{option} " in help_of(words[1]) or f"{option}]" in help_of(words[1]), (words, option)
            help_of(words[1])
        if words[0] == "scripts/test":
            script = (ROOT / "scripts" / "test").read_text(encoding="utf-8")
            assert all(f"scripts/test {word}" in script for word in words[1:] if word.startswith("--")), words
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(f"{words[2]}.__main__"), words
            for command in words[3:4]:
                documented = importlib.import_module(f"{words[2]}.__main__").__doc__ or ""
                assert f"python -m {words[2]} {command} " in documented, words
    for option in (words[0] for words in map(str.split, spans(TEXT[name])) if words and words[0].startswith("--")):
        if name in ("README.md", "evaluating.md"):
            assert option in help_of("evaluate"), option


# -------------------------------------------------------------------------------------------------------------- layout


def said(path: Path) -> str:
    """How a module's docstring begins."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(re.split(r"(?<=\w)[.:;](?:\s|$)", docstring.replace("``", ""))[0].split())


def picture() -> str:
    """The tree of packages: each with how its docstring begins, then its modules."""
    lines = []

    def add(name: str, text: str) -> None:
        lines.extend(textwrap.wrap(text, 118, initial_indent=f"{name:<24}", subsequent_indent=" " * 24))

    for top in ("hf_gelu_patch", "scripts"):
        for init in sorted((ROOT / top).rglob("__init__.py")):
            folder = init.parent.relative_to(ROOT)
            add("  " * (len(folder.parts) - 1) + folder.name + "/", said(init))
            modules = sorted(path for path in init.parent.glob("*.py") if path != init)
            if folder == Path("hf_gelu_patch"):
                for path in modules:
                    add(f"  {path.stem}", said(path))
            else:
                add("", "  " + " ".join(path.stem for path in modules))
    return "\n".join(lines) + "\n"


def test_the_layout_shown_is_that_of_the_tree() -> None:
    assert blocks(TEXT["CONTRIBUTING.md"], "text") == [picture()]


# ------------------------------------------------------------------------------------------------------------- figures


def test_the_coverage_shown_is_that_of_the_table() -> None:
    totals = (ROOT / "scripts" / "covering" / "coverage.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert len(totals) == 5
    number = r"([\d,]+)"
    text, readme = flat("patching.md"), flat("README.md")
    first, second, third, fourth, fifth = totals
    [(tried, kept, unbuilt)] = re.findall(
        f"^{number} model types, {number} as promised, 0 not; {number} more cannot be built here.$", first
    )
    assert f"All of it held for {kept} of {tried} model types. {unbuilt} more types could not be built." in text
    [(executed, where, missed)] = re.findall(
        f"^One forward of each executes {number} activations: (.*) Not listed by find_sites: {number} places.$", second
    )
    assert f"One forward of each ran {executed} activations: {where} `find_sites` missed {missed} of these" in text
    [(listed, kinds, changed)] = re.findall(rf"^Sites: {number} \((.*)\), {number} changed.$", third)
    assert f"`find_sites` listed {listed} sites, and the patch changed {changed}." in text
    [fused] = re.findall(
        f"^Gated products: {number} of {number} fused. Behind a linear layer, not gated: {number} of {number} fused.$",
        fourth,
    )
    sites = {kind: count for count, kind in (one.split() for one in kinds.split(", "))}
    assert f"| `gated` | {sites['gated']} | {fused[1]} | {fused[0]} |" in text
    assert f"| `linear` | {sites['linear']} | {fused[3]} | {fused[2]} |" in text
    assert f"| `pointwise` | {sites['pointwise']} | all others |" in text
    assert f"The largest {fifth[len('Largest ') :].replace(': ', ' was ')}" in text
    table = (ROOT / "scripts" / "covering" / "coverage.md").read_text(encoding="utf-8")
    single = re.findall(f"^- {number} × .* is one aten op already", table, re.MULTILINE)
    count = sum(int(one.replace(",", "")) for one in single)
    assert f"Of the others, {count:,} are one operation already" in text
    assert f"{tried} model types of transformers were tried, each as a tiny random model, and all {kept} kept" in readme
    assert f"{unbuilt} more could not be built. The patch changed {changed} of {listed} sites." in readme


def test_the_coverage_of_other_libraries_shown_is_that_of_the_record() -> None:
    recorded = covering_record.read_record(ROOT / "scripts" / "covering" / "libraries.json")
    assert covering_record.summary(recorded) in TEXT["patching.md"]
    [(processor, torch_version)] = {(own["processor"], own["versions"]["torch"]) for own in recorded.values()}
    assert f"on an {processor} with torch {torch_version}." in flat("patching.md")
    failed = sum(bool(row.problems) for rows in covering_record.rows_of(recorded).values() for row in rows)
    assert f"{failed} of them did not keep every promise" in flat("patching.md")


def test_what_is_said_of_other_tools_is_that_of_the_table() -> None:
    totals = (BENCHMARKING / "tools" / "tools.md").read_text(encoding="utf-8").split("\n\n")[2]
    [(tools, alike, rounds, models, refused)] = re.findall(
        r"^(\d+) tools, (\d+) as without a patch; (\d+) rounds on (\d+) models, (\d+) of them refused", totals
    )
    shown = (
        f"{tools} tools were tried in {int(rounds):,} rounds on {models} models. The models behave as without a patch "
        f"with {alike} of the tools. In {refused} rounds a patch could not be undone while the tool was on"
    )
    assert shown in flat("patching.md")


def test_the_quantizers_named_are_those_tried() -> None:
    recorded = json.loads((BENCHMARKING / "tools" / "tools.json").read_text(encoding="utf-8"))["tools"]
    packages = [tool["package"] for tool in recorded.values() if tool["does"] == "quantizes"]
    *others, last = ["torch.ao" if package == "torch" else package for package in packages]
    assert f"Tried with {', '.join(others)} and {last}" in flat("patching.md")


def noise_of(floor: dict[str, float]) -> float:
    """How far the interval of a model against itself reaches from 1, as the report shows it."""
    return math.exp(max(abs(math.log(floor[end])) for end in ("low", "high"))) - 1


def test_the_verdicts_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "benchmark.json").read_text(encoding="utf-8"))["noise"]
    runs = recorded["runs"]
    verdicts = {name: Counter(run[name]["verdict"] for run in runs) for name in ("eager", "slowed")}
    covered = sum(run["eager"]["ratio"]["low"] <= 1 <= run["eager"]["ratio"]["high"] for run in runs)
    assert covered == recorded["cover_one"]
    same = verdicts["eager"]["no difference detected"]
    text, slower = flat("evaluating.md"), verdicts["slowed"]["slower"]
    assert f"evaluated the reference model `{recorded['model']}` in {len(runs)} runs" in text
    assert f'Against itself, the verdict was "no difference detected" in {same} of {len(runs)} runs.' in text
    assert f"The interval held the true ratio, 1.0, in {covered} of {len(runs)} runs." in text
    assert f'With the delay, the verdict was "slower" in {slower} of {len(runs)} runs.' in text
    assert f"a planted delay of {recorded['delay']:.0%}".replace("%", " %") in text
    assert f"for {recorded['seconds']:.0f} s or more a variant" in text
    noise = max(noise_of(run["eager"]["floor"]) for run in runs)
    assert f"The noise was at most {100 * noise:.1f} % in each of these runs." in text
    demo = json.loads((ROOT / ".github" / "demo.json").read_text(encoding="utf-8"))
    [model] = [model for model in demo["models"] if model["subject"]["name"] == recorded["model"]]
    noise = noise_of(model["variants"][0]["speed"]["forward"]["floor"])
    assert f"In the README's demo it was {100 * noise:.1f} % for the same model" in text
    assert "A delay smaller than the noise stays undetected." in text


def test_the_faults_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "planted" / "planted.json").read_text(encoding="utf-8"))
    faults, entries, right = recorded["faults"], recorded["planted"], recorded["right"]
    models = {entry["model"] for entry in entries}
    held = [entry for entry in entries if faults[entry["fault"]]["held_out"]]
    every, aside, alarms = map(planted.caught, (entries, held, right))
    assert alarms["by neither"] == alarms["all"]
    in_gradients = sum(faults[entry["fault"]]["kind"] == "wrong gradient" for entry in entries)
    for shown in (
        f"{len(faults)} faults of known kinds in {len(models)} tiny random models, each in those that can have it: "
        f"{every['all']} cases in all.",
        f"`verify=` with `gradients=True` caught {every['by verify']} of them. Without `gradients=True` it cannot see "
        f"the {in_gradients} that are wrong in the gradient only.",
        f"`evaluate` caught {every['by evaluate']}.",
        f"{every['by neither']} escaped both.",
        f"No limit was tuned on {aside['all']} of the cases. Of these, {aside['by neither']} escaped both.",
        f"None of {alarms['all']} right patches was called wrong, over implementations, dtypes, modes and wrappers.",
    ):
        assert shown in flat("verifying.md")


def test_the_bars_shown_are_those_that_hold() -> None:
    bars = {dtype: math.sqrt(torch.finfo(getattr(torch, dtype)).eps) for dtype in ("float32", "bfloat16")}
    shown = ", ".join(f"{dtype} {bar:.1e}".replace("e-0", "e-") for dtype, bar in bars.items())
    assert f"√ε of its output's usual numbers: {shown} |" in flat("verifying.md")


def test_the_operations_shown_are_those_counted() -> None:
    counts: dict[str, int] = {}
    for spelling in ACT2FN:
        found = resolve(ACT2FN[spelling])
        counts[spelling] = getattr(found, "aten_ops", 0)
    bloom = resolve(transformers.models.bloom.modeling_bloom.BloomGelu())
    assert bloom is not None
    (row,) = [line for line in TEXT["speed.md"].splitlines() if "`gelu_new`" in line and line.startswith("|")]
    shown = [counts[span] for span in spans(row)] + [getattr(bloom, "aten_ops", 0)]
    assert f"{min(shown)}–{max(shown)} operations" in row
    assert f"{min(shown)}–{max(shown)} operations become one" in flat("README.md")
    (row,) = [line for line in TEXT["speed.md"].splitlines() if line.startswith("| `quick_gelu`")]
    shown = [counts[span] for span in spans(row)]
    assert f"{min(shown)}–{max(shown)} operations" in row
    assert f"`gelu_new` is {['no', 'one', *'234567', 'eight', 'nine'][counts['gelu_new']]} operations" in flat(
        "speed.md"
    )
    for name in ("README.md", "speed.md"):
        assert f"{LARGE >> 20} MiB or larger" in flat(name)


def test_the_times_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "benchmark.json").read_text(encoding="utf-8"))["patching"]
    for model, name in (("gpt2", "GPT-2 small"), ("llama-405b", "Llama 405B without weights")):
        median = recorded[model]["median_ms"]
        shown = f"{name} {median['first']:.1f} ms the first time and {median['again']:.1f} ms again"
        assert shown in flat("speed.md")


def test_the_costs_of_a_launch_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "launch" / "launch.json").read_text(encoding="utf-8"))
    calls, about = recorded["launch"]["calls"], recorded["environment"]
    names = ("ops.pointwise", "ops.pointwise, to be differentiated", "F.gelu")
    plain, differentiable, aten = (calls[name]["least_us"] for name in names)
    assert all(one["least_us"] == min(one["samples_us"]) for one in calls.values())
    torch_version, triton_version = (about["versions"][name].rsplit(".", 1)[0] for name in ("torch", "triton"))
    assert about["threads"] == 1
    for shown in (
        f"A call takes {plain:.1f} µs in Python, or {differentiable:.1f} µs where a gradient will be needed. "
        f"`F.gelu` of eight elements takes {aten:.1f} µs on the same CPU.",
        f"the shortest times of {recorded['launch']['rounds']} rounds with a driver that launches nothing: one thread "
        f"of an {about['cpu']}, torch {torch_version}, triton {triton_version}.",
    ):
        assert shown in flat("implementations.md")


def test_the_exports_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "exports" / "exports.json").read_text(encoding="utf-8"))
    about, found = recorded["environment"], recorded["exports"]
    assert exports.table(found["cells"]) in TEXT["patching.md"]
    for cell in found["cells"]:
        own, new = cell["variants"]["own"], cell["variants"]["patched"]
        assert (new["exported"], new["run"]) == (own["exported"], own["run"])
        assert cell["compared"]["patched"]["verdict"] == "no difference detected"
        assert all(len(own) >= found["rounds"] for own in cell["seconds"].values())
    assert {cell["opset"] for cell in found["cells"]} == {18, 22}
    versions = [f"{name} {about['versions'][name].split('+')[0]}" for name in ("torch", "onnx", "onnxruntime")]
    for shown in (
        f"a batch of {found['batch']} × {found['length']} tokens or one image, one thread",
        f"in {found['rounds']} rounds or more",
        f"was at most {100 * max(noise_of(cell['floor']) for cell in found['cells']):.1f} %",
        f"It was run on an {about['cpu']}; {', '.join(versions)}.",
    ):
        assert shown in flat("patching.md")
    assert about["threads"] == 1


def test_the_errors_shown_are_those_of_the_kernels_table() -> None:
    table = (BENCHMARKING / "static" / "kernels.md").read_text(encoding="utf-8")
    text = flat("implementations.md")

    def cells(start: str) -> list[list[str]]:
        return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(start)]

    emulated = {dtype: cells(f"| {dtype} | ")[-1] for dtype in ("bfloat16", "float16", "float32")}
    for dtype in ("bfloat16", "float16"):
        own, torchs = cells(f"| gelu | {dtype} | ")[0][3].split(" / ")
        assert f"| {dtype} | {own} | {emulated[dtype][3]} | {torchs} |" in text
    assert f"The {emulated['bfloat16'][3]} ulp occur only for inputs below −13.2." in text
    assert f"For inputs of −5 and above the largest emulated error is {emulated['bfloat16'][1]} ulp." in text
    found = gpu_record.read([BENCHMARKING / "gpu" / "h200" / "second"]).checks["gelu", "forward", "bfloat16"]
    on_card = {name: f"{own['ulp']:.3g}" for name, own in found["error_ulp"].items()}
    assert f"from −5 to 32: {on_card['triton']} ulp, where PyTorch is off by up to {on_card['aten']} ulp" in text
    assert f"the largest emulated absolute error is {emulated['float32'][5]}." in text
    assert "torch 2.13.0" in text.partition("### Accuracy")[2]
    assert "torch 2.13.0" in " ".join(table.partition("## Coefficients")[0].split())
    steepest = cells("| gelu | bfloat16 | ")[0][4].split(" / ")[1]
    assert f"the derivative of exact GELU is off by up to {emulated['bfloat16'][4]} ulp in bfloat16." in text
    assert f"PyTorch's is off by up to {steepest} ulp on that CPU." in text
    for name in triton_forms.POINTWISE:  # "no activation's largest error is above PyTorch's"
        rows = [row for row in cells(f"| {name} | ") if row[1] in emulated and "%" not in row[-1]]
        assert len(rows) == 3
        for row in rows:
            own, torchs = map(float, row[4].split(" / "))
            assert own <= max(torchs, 0.51), row
    once, first = (cells("| gelu | bfloat16 | ")[1][column].split(" / ")[0] for column in (2, 4))
    shown = f"With exact GELU its mean error in bfloat16 is {once} ulp. PyTorch's two operations have {first} ulp."
    assert shown in text
    alike = [row[3].split(", ")[1] for dtype in ("bfloat16", "float16") for name in ("gelu", "gelu_tanh", "silu")
             for row in cells(f"| {name} | {dtype} | ") if "%" in row[3]]  # fmt: skip
    assert len(alike) == 6
    assert f"their bits in {min(float(share.rstrip('%')) for share in alike):.2f} % of cases or more" in text
    for said in ("beyond −13.2", "at most 7e−38"):
        assert said in " ".join(table.split())
    assert "There the derivative is at most 7e−38." in text
    assert "the derivative at most 7e−38" in " ".join(table.split())
    assert "PyTorch on that CPU returns NaN there: at −∞ for values, and at both ends for many derivatives" in text
    header, row = (next(iter(cells(start))) for start in ("| activation | 0 | −0", "| gelu | 0, 0.5"))
    assert row[header.index("−∞")].endswith("(nan, nan)")
    assert row[header.index("∞")].endswith("(inf, nan)")


def test_the_implementations_shown_are_those_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXT["implementations.md"], re.MULTILINE)
    assert sorted(rows) == sorted([*IMPLEMENTATIONS, "auto"])
    listed = TEXT["implementations.md"].partition("They compute ")[2].partition(".\n")[0]
    assert re.findall(r"`(\w+)`", listed) == [*triton_forms.POINTWISE, "swiglu_oai"]
