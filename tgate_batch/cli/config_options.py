"""The options shared by the commands that take a config."""

import argparse
import json

from tgate_batch import config
from tgate_batch.config import Config
from tgate_batch.execute import import_path, plugins


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config``, ``--output`` and ``--set``."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a YAML file, or the name of a bundled config (demo, sdxl, ...)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="output folder or URI; overrides the config's"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=value",
        help="override one setting, for example --set prompts.limit=100 (repeatable)",
    )


def read(options: argparse.Namespace) -> Config:
    """Returns the config with ``--set`` and ``--output`` applied; registers its plugins.

    Raises UserError for a config that cannot be used.
    """
    overrides = list(options.set)
    if options.output is not None:
        overrides.append(f"output={json.dumps(options.output)}")
    loaded = config.load(config.find(options.config), overrides)
    import_path.leave_out(loaded.output)  # its files may be untrusted
    plugins.register(loaded.plugins)
    return loaded
