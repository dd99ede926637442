#!/usr/bin/env bash
# Fetches into .whl/ what a machine with PyTorch and Python 3.12, but without a network, lacks for dev/gpu.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
# mujoco needs mujoco-core of its own version; labmaze is not asked for its needs, which are there.
packages=(
    mujoco==4.0.0 mujoco-core==4.0.0 labmaze diffusers PyOpenGL gymnasium tyro typeguard docstring_parser
    farama-notifications importlib_metadata
)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
mkdir -p .whl
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest .whl "${packages[@]}"
du -sh .whl
