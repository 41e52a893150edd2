"""A shard on its way through dying workers: who is to blame, and what is left to try. No Ray."""

from dataclasses import dataclass, field

from tgate_batch.output.run import Missing
from tgate_batch.records import Prompt, Shard

LIVES = 3  # deaths of its worker that a task survives unsplit


@dataclass
class Task:
    """One (model, shard) on its way, with what is known of its prompts."""

    work: Missing
    deaths: int = 0
    errors: int = 0
    splits: int = 0
    alone: bool = False  # under suspicion: shares its worker with no other task
    quarantined: dict[str, str] = field(default_factory=dict)
    suspects: list[tuple[Prompt, ...]] = field(default_factory=list)
    arms_left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arms_left = list(self.work.arms)

    @property
    def is_trial(self) -> bool:
        return bool(self.suspects)

    @property
    def shard(self) -> Shard:
        """What is to be rendered next: all of it, or the prompts of a trial."""
        whole = self.work.shard
        return Shard(whole.index, self.suspects[-1]) if self.is_trial else whole

    def worker_died(self) -> None:
        self.deaths += 1
        if self.is_trial:
            self._accuse(self.suspects.pop())
        elif self.deaths >= LIVES:
            self.splits += 1
            left = tuple(p for p in self.work.shard.prompts if p.id not in self.quarantined)
            if self.splits == 1:
                self._accuse(left)
            else:  # no single prompt was to blame, and it dies all the same
                for prompt in left:
                    self._quarantine(prompt)
            self.deaths = 0

    def trial_survived(self) -> None:
        self.suspects.pop()

    def _accuse(self, prompts: tuple[Prompt, ...]) -> None:
        if len(prompts) == 1:
            self._quarantine(prompts[0])
        elif prompts:
            half = len(prompts) // 2
            self.suspects += [prompts[half:], prompts[:half]]

    def _quarantine(self, prompt: Prompt) -> None:
        self.quarantined[prompt.id] = "the worker's process died each time on this prompt"
