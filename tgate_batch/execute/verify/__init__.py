"""Whether an output folder is what it should be, file by file; and the repair of what is not."""

from tgate_batch.execute.verify.repair import prompts_again, repaired
from tgate_batch.execute.verify.run import verify

__all__ = ["prompts_again", "repaired", "verify"]
