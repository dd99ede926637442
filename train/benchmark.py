"""Gone: `python -m train.evaluate --measures speed memory_costs` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.benchmark is gone: python -m train.evaluate --measures speed memory_costs")
