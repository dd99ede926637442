"""Gone: `python -m train.evaluate --measures accumulation` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.accumulation is gone: python -m train.evaluate --measures accumulation")
