"""``make faults``: every kind of fault, many times at random moments, and a table of the outcome.

Each round disturbs a run, continues it, and compares its output with an undisturbed run's, row by
row and image by image. ``python tests/faults/suite.py [--only TEXT] [--share 0.1] [--seed N]``
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import damage  # noqa: E402
import injected  # noqa: E402
import model  # noqa: E402
import processes  # noqa: E402
import store  # noqa: E402
import workers  # noqa: E402
from world import World  # noqa: E402

from tgate_batch.execute import ray  # noqa: E402

LONGEST_ROUND = 600  # seconds, for the slowest kind on a busy machine

Round = Callable[[random.Random], None]


class Places:
    """The surroundings of the rounds; most are made when the first round needs them."""

    def __init__(self, place: Path, stack: contextlib.ExitStack):
        self._place, self._stack = place, stack
        self.world = World(place / "world")

    @cached_property
    def of_a_model(self) -> World:
        return model.world_of_a_model(self._place / "model")

    @cached_property
    def on_a_store(self) -> World:
        return store.WorldOnAStore(self._place / "store")

    @cached_property
    def cluster(self) -> processes.Cluster:
        made = processes.Cluster(self._place)
        self._stack.callback(made.end)
        return made

    @cached_property
    def workers(self) -> World:
        """Starts workers in other processes for the runs in this process."""
        workers.join(self.cluster)
        self._stack.callback(ray.stop)
        return self.world


def rounds(places: Places) -> Iterator[tuple[str, Round, int]]:
    """Yields (kind, round, number of times)."""
    for world, kinds in (
        (lambda: places.world, injected.ROUNDS),
        (lambda: places.world, damage.ROUNDS),
        (lambda: places.of_a_model, model.ROUNDS),
        (lambda: places.on_a_store, store.ROUNDS),
        (lambda: places.workers, workers.ROUNDS),
    ):
        for kind, (one, times) in kinds.items():
            yield kind, lambda rng, one=one, world=world: one(world(), rng), times
    for kind, (act, codes, times) in processes.ON_A_SHARED_CLUSTER.items():

        def shared(rng: random.Random, act=act, codes=codes) -> None:
            processes.disturbed(places.world, rng, places.cluster, act, codes)

        yield kind, shared, times
    for kind, (act, codes, nodes, times) in processes.ON_ITS_OWN_CLUSTER.items():

        def alone(rng: random.Random, act=act, codes=codes, nodes=nodes) -> None:
            own = processes.Cluster(places.world.place / f"nodes-{rng.randrange(10**9)}", nodes)
            try:
                processes.disturbed(places.world, rng, own, act, codes)
            finally:
                own.end()

        yield kind, alone, times
    for kind, (act, codes, when, times) in processes.WITH_A_RAY_THAT_IT_STARTS.items():

        def by_itself(rng: random.Random, act=act, codes=codes, when=when) -> None:
            processes.disturbed(places.world, rng, None, act, codes, when)

        yield kind, by_itself, times


def run(place: Path, only: Collection[str], share: float = 1.0, seed: int = 0) -> Counter[str]:
    """Runs the rounds and prints the table; ``{"faults": n, "failed": n}``."""
    total: Counter[str] = Counter()
    begun, used = time.monotonic(), _cpu_seconds()
    print(f"{'kind':36} {'faults':>7} {'held':>6} {'seconds':>8}", flush=True)
    with contextlib.ExitStack() as stack:
        for kind, one, times in rounds(quietly(Places, place, stack)):
            if not any(text in kind for text in only):
                continue
            times, start, failed = max(1, round(times * share)), time.monotonic(), 0
            for number in range(times):
                try:
                    with in_time():
                        quietly(one, random.Random(f"{seed} {kind} {number}"))
                except Exception:
                    failed += 1
                    print(f"{kind}, round {number}:", traceback.format_exc(limit=-5), sep="\n")
            seconds = time.monotonic() - start
            print(f"{kind:36} {times:7} {times - failed:6} {seconds:8.1f}", flush=True)
            total += Counter(kinds=1, faults=times, failed=failed)
    took, used = time.monotonic() - begun, _cpu_seconds() - used
    print(
        f"{total['faults']} faults of {total['kinds']} kinds, {total['failed']} did harm; "
        f"{took / 60:.1f} minutes, {used / 60:.1f} of a CPU"
    )
    return total


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Fails a round that hangs."""

    def hangs(number: int, frame: object) -> None:
        raise AssertionError(f"it hangs: nothing after {LONGEST_ROUND} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST_ROUND)
    try:
        yield
    finally:
        signal.alarm(0)


def quietly(call: Callable, *rest):
    """Shows the output of a call only if it fails."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return call(*rest)
    except Exception:
        print(output.getvalue()[-2000:])
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="only kinds with this text in their name",
    )
    parser.add_argument("--share", type=float, default=1.0, help="share of the rounds to run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as place:
        total = run(Path(place), options.only or [""], options.share, options.seed)
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
