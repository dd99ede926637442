"""Gone: `python -m train.evaluate --measures bottleneck` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.bottleneck is gone: python -m train.evaluate --measures bottleneck")
