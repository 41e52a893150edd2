"""Makes the file that pictures are compared with: statistics of a set of pictures, one .npz.

python jobs/reference.py --config configs/coco10k.yaml --from val2014/
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli, workflow


def job() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help="pictures: a folder, a .tar, .parquet rows (a file or a folder), or a .txt of paths",
    )
    parser.add_argument(
        "--to",
        metavar="FILE.npz",
        help="in place of the config's score.reference; {extractor} stands for its name",
    )
    arguments = parser.parse_args()
    return workflow.reference(cli.read_config(arguments), arguments.source, arguments.to)


if __name__ == "__main__":
    cli.main(job)
