"""What is known of the Triton kernels without a GPU.

    python -m scripts.benchmarking.static fit       # the coefficients of normal_tail.MILLS, and how far off they are
    python -m scripts.benchmarking.static errors    # every kernel, interpreted, over all values of fp16 and bf16
    python -m scripts.benchmarking.static static    # every kernel, compiled for four GPUs
    python -m scripts.benchmarking.static all       # all of it, written to kernels.md beside this

``--json`` prints the figures instead. Compiling and interpreting need a process each: ``all`` starts them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).with_name("kernels.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarking.static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=("fit", "errors", "static", "all"))
    parser.add_argument("--everything", action="store_true", help="static: every activation, not only what is checked")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if options.command == "all":
        _all()
    elif options.command == "fit" and not options.json:
        from scripts.benchmarking.static import coefficients

        print(coefficients.to_paste(coefficients.fit()), end="")
    else:
        print(json.dumps(_found(options), indent=None if options.json else 1, ensure_ascii=False))


def _found(options: argparse.Namespace) -> Any:
    """What the command finds; its module is imported once the process is set up for it."""
    if options.command == "errors":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared
        from scripts.benchmarking.static import errors

        return errors.errors()
    if options.command == "static":
        from scripts.benchmarking.static import compiled

        return compiled.static(options.everything)
    from scripts.benchmarking.static import coefficients

    return coefficients.fit()


def _all() -> None:
    import torch
    import triton

    from scripts.benchmarking.static import errors, page

    def run(command: str, *options: str) -> Any:
        print(f"{command} …", file=sys.stderr, flush=True)
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarking.static", command, "--json", *options],
            env=environment,
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    found = {name: run(name) for name in ("fit", "errors")}
    found |= {"static": run("static", "--everything"), "hardware": errors.on_hardware()}
    found |= {"triton": triton.__version__, "torch": torch.__version__}
    _PAGE.write_text(page.document(found), encoding="utf-8")
    print(f"written to {_PAGE.name}")


if __name__ == "__main__":
    main()
