"""Settings and fixtures that all tests share.

Owns: one thread, no network, repeatable random examples. Programs that a test starts inherit the environment.
"""

import os
import sys

for _name, _value in {
    "OMP_NUM_THREADS": "1",  # two processes with two threads each stall one another
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",  # no test may load weights from anywhere but this checkout
    **({"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}),
}.items():
    os.environ.setdefault(_name, _value)

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("project")
