"""Creates `.venv` and installs the project there, with a build of PyTorch that fits the machine.

Owns: the choice of interpreter and of the PyTorch build. Runs before anything is installed, so it needs only the
standard library of Python 3.8+ and shares no code with the project; `make setup` is its only caller.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch>=2.9"  # as in pyproject.toml
OLDEST_PYTHON = (3, 11)
FIRST_PYTHON_WITHOUT_LABMAZE = (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Where a CPU build may come from, as pip's options to ask and then to install: the wheels that pip's own find-links
# names, then PyTorch's index, which is given up on quickly.
CPU_SOURCES: tuple[tuple[list[str], list[str]], ...] = (
    (["--no-index"], []),
    (["--index-url", CPU_INDEX, "--timeout", "10", "--retries", "1"], ["--extra-index-url", CPU_INDEX]),
)


class SetupError(Exception):
    """The machine lacks something; the message says what to do."""


def say(line: str) -> None:
    """Print a line at once, ahead of what pip prints next."""
    print(line, flush=True)


def output_of(command: list[str]) -> str | None:
    """Return what a command prints, or None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def run(command: list[str], advice: str) -> None:
    """Run a command in view of the user.

    Raises:
        SetupError: it failed; the message ends with `advice`.
    """
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SetupError(f"this command failed: {' '.join(command)}\n{advice}")


def python_version(executable: str) -> tuple[int, int] | None:
    """Return (major, minor) of an interpreter, or None where it does not run (a version manager's empty shim)."""
    printed = output_of([executable, "-c", "import sys; print(*sys.version_info[:2])"])
    if not printed:
        return None
    major, minor = printed.split()
    return int(major), int(minor)


def find_python() -> str:
    """Return an interpreter for `.venv`: the running one if it will do, else the first on PATH; labmaze's preferred.

    Raises:
        SetupError: there is no Python 3.11 or newer.
    """
    names = ["python3.12", "python3.11", "python3.13", "python3.14", "python3.15"]
    found = [sys.executable, *filter(None, map(shutil.which, names))]
    versions = {path: python_version(path) for path in found}
    usable = [path for path in found if (versions[path] or (0, 0)) >= OLDEST_PYTHON]
    if not usable:
        raise SetupError(
            f"Python {platform.python_version()} is too old and no newer one is on PATH; install Python 3.11 or 3.12, "
            "or name one: make setup PYTHON=/path/to/python3.12"
        )
    return next((path for path in usable if (versions[path] or (0, 0)) < FIRST_PYTHON_WITHOUT_LABMAZE), usable[0])


def prepare_venv(folder: Path, python: str | None) -> str:
    """Create the virtual environment, or take the existing one, and return its interpreter, which has pip.

    Raises:
        SetupError: the environment cannot be made, or its Python is too old.
    """
    executable = str(folder / "bin" / "python")
    if python_version(executable) is None:
        if python and (python_version(python) or (0, 0)) < OLDEST_PYTHON:
            raise SetupError(f"PYTHON={python} does not run or is older than 3.11; name a Python 3.11 or 3.12")
        advice = "on Debian or Ubuntu: apt-get install python3-venv"
        run([python or find_python(), "-m", "venv", str(folder)], advice)
    if (python_version(executable) or (0, 0)) < OLDEST_PYTHON:
        raise SetupError(f"the Python in {folder} is older than 3.11; remove the folder and run make setup again")
    if output_of([executable, "-m", "pip", "--version"]) is None:
        run(
            [executable, "-m", "ensurepip", "--upgrade"],
            f"{folder} has no pip; remove the folder and run make setup again",
        )
    return executable


def installed_torch(python: str) -> str | None:
    """Return the version of the PyTorch that this interpreter would import, or None."""
    printed = output_of([python, "-c", "import importlib.metadata as m; print(m.version('torch'))"])
    return printed.strip() if printed else None


def is_new_enough(version: str) -> bool:
    """Claim that a PyTorch version satisfies `TORCH`; '2.13.0+cpu' does."""
    wanted = tuple(int(part) for part in TORCH.split(">=")[1].split("."))
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2]) >= wanted


def has_nvidia_gpu() -> bool:
    """Claim that the NVIDIA driver sees a GPU."""
    return "GPU" in (output_of(["nvidia-smi", "-L"]) or "")


def find_cpu_build(python: str) -> list[str] | None:
    """Return pip's arguments for a CPU build that it can get, such as ['torch==2.13.0+cpu'], or None."""
    dry_run = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    for ask_options, install_options in CPU_SOURCES:
        report = output_of([*dry_run, "--report", "-", *ask_options, TORCH])
        version = json.loads(report)["install"][0]["metadata"]["version"] if report else ""
        if "+cpu" in version:
            return [*install_options, f"torch=={version}"]
    return None


def install_torch(python: str, build: str) -> None:
    """Install PyTorch unless a fitting one is there.

    Args:
        python: interpreter of the virtual environment.
        build: "cpu", "cuda", or "auto": CUDA where there is an NVIDIA GPU.

    Raises:
        SetupError: a CPU build was asked for and none can be had, or pip failed.
    """
    present = installed_torch(python)
    is_wrong_build = build == "cuda" and "+cpu" in (present or "")
    if present and is_new_enough(present) and not is_wrong_build:
        say(f"PyTorch {present} is installed already and stays.")
        return
    wants_cpu = build == "cpu" or (build == "auto" and not has_nvidia_gpu())
    advice = "see pip's message above; the network, or space on the disk, may be missing"
    pip_install = [python, "-m", "pip", "install"]
    if wants_cpu and platform.system() == "Linux":  # elsewhere the ordinary build is a CPU build
        arguments = find_cpu_build(python)
        if arguments:
            say(f"Installing the CPU build of PyTorch: {arguments[-1]}")
            run([*pip_install, *arguments], advice)
            return
        if build == "cpu":
            raise SetupError(
                f"no CPU build of PyTorch was found: {CPU_INDEX} is out of reach and pip's find-links has no "
                "torch wheel marked +cpu; put one there, or take the CUDA build (several GB): make setup TORCH=cuda"
            )
        say("No CPU build of PyTorch can be reached: installing the ordinary one, with several GB of CUDA packages.")
    if is_wrong_build:
        run([python, "-m", "pip", "uninstall", "--yes", "torch"], advice)
    run([*pip_install, TORCH], advice)


def main() -> None:
    """Create `.venv` and install the project there, editable, with everything a developer needs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto", help="which build of PyTorch")
    parser.add_argument("--python", help="interpreter for a new .venv (default: found on PATH)")
    options = parser.parse_args()
    try:
        python = prepare_venv(ROOT / ".venv", options.python)
        install_torch(python, options.torch)
        run([python, "-m", "pip", "install", "--editable", ".[dev]"], "see pip's message above")
    except SetupError as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    main()
