"""Gone: `python -m train.evaluate --measures tradeoff` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.dial is gone: python -m train.evaluate --measures tradeoff")
