"""Prompts are rendered by gated actors into Parquet, scored, and reported.

The map, in the order the data takes:

- ``prompts``  reads a prompt set and cuts it into shards
- ``render``   renders one shard with one pipeline, one arm at a time (no Ray)
- ``output``   the output folder: its names, what each file was made of, whole files or none
- ``score``    measures the pictures of a shard, adds shards up, and brings sums down to figures
- ``report``   all arms beside their baseline: JSON, Markdown, one HTML page
- ``execute``  who does what next: a pool of tasks, workers, with Ray or in this process
- ``workflow``, ``cli``  the whole way in order, and the commands over it

What they build on stands before them: ``errors``, ``records`` (the nouns) and ``storage`` (a file
appears whole or not at all); ``gate`` (the method, usable on its own); ``config`` (a run as data);
``metrics`` (one file a figure); ``plan_search`` (which plan to use); ``demo`` (the embedded model);
``models`` (one file a family). ``benchmarks/``, next to this package, measures all of it.
``tests/test_layering.py`` lists every module in order: each imports only what stands above it.

This module imports nothing, so that ``tgate_batch.gate`` stays light.
"""

__version__ = "0.2.0"  # the only place that says it
