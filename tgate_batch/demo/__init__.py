"""The embedded model: a small text-to-image pipeline, trained by `tgate_batch.demo.training.train`.

`PATH` is a plain diffusers folder; `PROMPTS` are captions (columns id, caption) whose combinations
of objects were not in the training set. README.md is the model card.
"""

from pathlib import Path

PATH = Path(__file__).parent
PROMPTS = PATH / "prompts.csv"
