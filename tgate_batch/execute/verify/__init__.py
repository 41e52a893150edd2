"""Whether an output folder is what it should be, file by file; and the repair of what is not."""

from tgate_batch.execute.verify.checker import verify
from tgate_batch.execute.verify.repair import repair_output, restore_prompts

__all__ = ["repair_output", "restore_prompts", "verify"]
