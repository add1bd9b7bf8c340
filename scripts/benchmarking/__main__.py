"""How long things take, and how far verdicts can be trusted.

    python -m scripts.benchmarking patching    # patch and unpatch: GPT-2 small, and Llama 405B without weights
    python -m scripts.benchmarking kernels     # every way to compute an activation, against what transformers runs
    python -m scripts.benchmarking gpu         # all that is to be known of a GPU: tests, kernels, whole models
    python -m scripts.benchmarking models      # whole models on a CPU: patched, compiled, and without activations
    python -m scripts.benchmarking sites       # single layers on a CPU, patched and not
    python -m scripts.benchmarking merged      # gate and up of a gated layer in one product, on a CPU
    python -m scripts.benchmarking memory      # what a training step keeps for backward, and its peak
    python -m scripts.benchmarking report      # the tables of what the commands above wrote, also where it was cut off
    python -m scripts.benchmarking choices     # what `auto` takes on a GPU or CPU, from what gpu or sites wrote
    python -m scripts.benchmarking launch      # what launching a kernel costs Python; needs no GPU
    python -m scripts.benchmarking exports     # models exported to ONNX and run by ONNX Runtime, patched and not
    python -m scripts.benchmarking scale       # a million examples in two processes: memory, time, killed on the way
    python -m scripts.benchmarking noise       # how far the verdicts on speed can be trusted here
    python -m scripts.benchmarking planted     # how far verify= and the verdict "wrong implementation" can be

patching: milliseconds of wall time, the median over fresh processes (first) and over rounds in one (again), with every
sample in the JSON that --output names.

kernels: first every candidate is checked against float64, over all values of a 16-bit dtype; then they are timed in
rounds, in an order drawn anew for each, with eager there twice: what is found between the two is the noise floor. A
copy is timed in the same rounds; a candidate's share of its bandwidth is that of the bytes that one fused kernel would
move. A backward is torch.autograd.grad alone, on a graph that is kept. On a CPU, Triton's kernels run only interpreted
(TRITON_INTERPRET=1): that is checked and timed, and is not a speed. With --output, what there is so far is in the JSON
after every cell.

gpu: whole models with random weights, patched and not, the kernels, their variants, the tests that need a GPU, and the
models compiled, within the minutes given. Each figure is in the record the moment it is there; a step that hangs,
crashes or has no memory costs itself alone. What to do with it stands in scripts/benchmarking/gpu/README.md.

models, sites, merged: on the CPU, each adding to one record. What is in it, of the same code, is not measured again.
All variants of a cell run in the same rounds, with the model as it is there twice for the noise.

memory: bytes, and the time of a step; gated layers as Liger-Kernel has them too, where it can be imported. One thread,
by the time that the process itself computes.

launch: microseconds of each call, median and quartiles of rounds in an order drawn anew for each. Without --device cuda
Triton launches on a stub driver that computes nothing: all that Python and Triton do is real, the driver's own work is
missing, and a backward runs on the calling thread.

exports: nodes, drift from what PyTorch computes, and the time of ONNX Runtime on one thread, by the time that the
process itself computes. Needs onnx, onnxscript and onnxruntime.

scale: a tiny classifier on made-up texts under torchrun, each run watched from outside: the memory of each process, and
seconds. Then the same, killed five times with SIGKILL, whose report has to be that of the run to the end.

noise: whole evaluations of a reference model, each of the model against itself and against itself with a planted
delay; and how many of them found what there is to find.

planted: faults of known kinds in tiny models of ten families, and which of them are caught by verify= and by the
evaluation; and right patches, none of which may be. With TRITON_INTERPRET=1 Triton's kernels are among those.
"""

from __future__ import annotations

import argparse
import time


def main() -> None:
    began = time.monotonic()  # importing torch counts
    from scripts.benchmarking import noise, patching, reporting
    from scripts.benchmarking.cpu import command as cpu
    from scripts.benchmarking.exports import command as exports
    from scripts.benchmarking.gpu import choices
    from scripts.benchmarking.gpu import command as gpu
    from scripts.benchmarking.kernels import command as kernels
    from scripts.benchmarking.launch import command as launch
    from scripts.benchmarking.memory import command as memory
    from scripts.benchmarking.planted import command as planted
    from scripts.benchmarking.scale import command as scale

    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for part in (patching, kernels, gpu, cpu, memory, reporting, choices, launch, exports, scale, noise, planted):
        part.add(commands)
    parser.set_defaults(began=began)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
