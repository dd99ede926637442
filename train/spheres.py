"""Gone: `python -m train.evaluate --measures targets` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.spheres is gone: python -m train.evaluate --measures targets")
