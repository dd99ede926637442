"""Gone: `python -m train.evaluate --measures teco revisit long_rollout` took its place."""

import sys

if __name__ == "__main__":
    sys.exit("error: train.endurance is gone: python -m train.evaluate --measures teco revisit long_rollout")
