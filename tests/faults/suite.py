"""``make faults``: every kind of fault, many times at random moments, and a table of the outcome.

Each round disturbs a run, lets it go on, and compares what it made with an undisturbed run, row by
row and picture by picture. ``python tests/faults/suite.py [--only TEXT] [--share 0.1] [--seed N]``
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from injected import ROUNDS  # noqa: E402
from world import World  # noqa: E402

Round = Callable[[random.Random], None]


def rounds(
    world: World, only: str, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Round, int]]:
    """(kind, round, how often). A cluster is started when the first round needs it."""
    from processes import ON_A_SHARED_CLUSTER, ON_ITS_OWN_CLUSTER, Cluster, disturbed

    for kind, (one, times) in ROUNDS.items():
        yield kind, partial(one, world), times
    shared = [kind for kind in ON_A_SHARED_CLUSTER if only in kind]
    if shared:
        cluster = Cluster(world.place)
        stack.callback(cluster.end)
    for kind, (act, codes, times) in ON_A_SHARED_CLUSTER.items():
        if kind in shared:
            yield kind, lambda rng, a=act, c=codes: disturbed(world, rng, cluster, a, c), times
    for kind, (act, codes, nodes, times) in ON_ITS_OWN_CLUSTER.items():

        def alone(rng: random.Random, act=act, codes=codes, nodes=nodes) -> None:
            own = Cluster(world.place / f"nodes-{rng.randrange(10**9)}", nodes, 2 // nodes)
            try:
                disturbed(world, rng, own, act, codes)
            finally:
                own.end()

        yield kind, alone, times


def run(place: Path, only: str = "", share: float = 1.0, seed: int = 0) -> Counter[str]:
    """Runs the rounds and prints the table; ``{"faults": n, "failed": n}``."""
    world = quietly(World, place)
    total: Counter[str] = Counter()
    print(f"{'kind':36} {'faults':>7} {'held':>6} {'seconds':>8}", flush=True)
    with contextlib.ExitStack() as stack:
        for kind, one, times in rounds(world, only, stack):
            if only not in kind:
                continue
            times, start, failed = max(1, round(times * share)), time.monotonic(), 0
            for number in range(times):
                try:
                    quietly(one, random.Random(f"{seed} {kind} {number}"))
                except Exception:
                    failed += 1
                    print(f"{kind}, round {number}:", traceback.format_exc(limit=-5), sep="\n")
            seconds = time.monotonic() - start
            print(f"{kind:36} {times:7} {times - failed:6} {seconds:8.1f}", flush=True)
            total += Counter(kinds=1, faults=times, failed=failed)
    print(f"{total['faults']} faults of {total['kinds']} kinds, {total['failed']} did harm")
    return total


def quietly(call: Callable, *rest):
    """The call's own output is shown only where it fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return call(*rest)
    except Exception:
        print(said.getvalue()[-2000:])
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds whose name has it")
    parser.add_argument("--share", type=float, default=1.0, help="of the rounds of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        total = run(Path(place), options.only, options.share, options.seed)
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
