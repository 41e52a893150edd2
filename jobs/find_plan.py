"""``tgate-batch find-plan``, for ``ray job submit`` and for a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted version, not another

from tgate_batch.cli import main

if __name__ == "__main__":
    main("find-plan", *sys.argv[1:])
