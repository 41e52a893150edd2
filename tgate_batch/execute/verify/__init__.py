"""Verifies an output folder file by file, and removes what is damaged."""

from tgate_batch.execute.verify.checker import verify
from tgate_batch.execute.verify.repair import repair_output, restore_prompts

__all__ = ["repair_output", "restore_prompts", "verify"]
