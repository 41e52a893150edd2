"""Benchmarks: ratios of what is compared, measured side by side in one run.

python jobs/bench.py gate          a gated call beside the reference's (tgate 1.0.0), tiny twins
python jobs/bench.py statistics    the Frechet distance beside pytorch-fid's: memory and time
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli


def gate() -> None:
    from tgate_batch.bench_gate import bench_gate

    print(json.dumps(bench_gate(), indent=2))


def statistics() -> None:
    from tgate_batch.metrics.bench_statistics import main

    main()


def job() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = {"gate": gate, "statistics": statistics}
    parser.add_argument("benchmark", choices=benchmarks)
    benchmarks[parser.parse_args().benchmark]()


if __name__ == "__main__":
    cli.main(job)
