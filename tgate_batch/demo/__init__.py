"""The embedded model: a small text-to-image pipeline, trained by `tgate_batch.demo.training.train`.

`PATH` is a plain diffusers folder; `PROMPTS` holds captions (columns id, caption) whose
combinations of objects were never in training. README.md beside them is the model card.
"""

from pathlib import Path

PATH = Path(__file__).parent
PROMPTS = PATH / "prompts.csv"
