"""Gone: `python -m train.evaluate --measures targets` took its place."""

from train.core.gone import gone
from train.core.options import run_program

if __name__ == "__main__":
    run_program(gone("train.spheres", "python -m train.evaluate --measures targets"))
