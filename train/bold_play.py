"""Gone: `python -m train.evaluate --measures bold_play` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.bold_play is gone: python -m train.evaluate --measures bold_play")
