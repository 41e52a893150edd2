"""Benchmarks: ratios of what is compared, measured side by side in one run, as JSON.

python jobs/bench.py gate          a gated call beside the reference's (tgate 1.0.0), tiny twins
python jobs/bench.py statistics    the Frechet distance beside pytorch-fid's: memory and time
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli


def gate() -> dict:
    from tgate_batch.bench_gate import bench_gate

    return bench_gate()


def statistics() -> dict:
    from tgate_batch.metrics import bench_statistics as bench

    memory = {rows: bench.memory_mib(rows) for rows in (20_000, 200_000)}
    theirs, ours, difference = bench.distance_seconds()
    whole_theirs, whole_ours, whole_difference = bench.whole_seconds()
    return {
        "mib_above_base_by_rows": memory,
        "distance": {"speedup": theirs / ours, "relative_difference": difference},
        "whole": {"speedup": whole_theirs / whole_ours, "relative_difference": whole_difference},
    }


def job() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = {"gate": gate, "statistics": statistics}
    parser.add_argument("benchmark", choices=benchmarks)
    print(json.dumps(benchmarks[parser.parse_args().benchmark](), indent=2))


if __name__ == "__main__":
    cli.main(job)
