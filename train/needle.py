"""Gone: `python -m train.evaluate --measures place_recall` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.needle is gone: python -m train.evaluate --measures place_recall")
