"""Gone: `python -m train.evaluate --measures place_recall` took its place."""

from train.core.gone import gone
from train.core.options import run_program

if __name__ == "__main__":
    run_program(gone("train.needle", "python -m train.evaluate --measures place_recall"))
