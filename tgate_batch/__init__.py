"""Prompts are rendered by gated actors into Parquet, scored, and reported.

The map, in the order the data takes:

- ``prompts``  reads a prompt set and cuts it into shards
- ``render``   renders one shard with one pipeline, one arm at a time (no Ray)
- ``worker``   one process of a run: its model, its shards, their files (no Ray)
- ``actors``   many workers at once, under Ray
- ``storage``, ``parquet``  where rows land: a file appears whole or not at all
- ``score``, ``metrics``    what the pictures are worth: throughput, MACs, Frechet distance, cost
- ``report``   all arms beside their baseline: JSON, Markdown, one HTML page

and what they share: ``gate`` (the method, usable on its own), ``records`` (the nouns),
``config`` (a run as data), ``models`` (the catalogue), ``demo`` (the embedded model).

This module imports nothing, so that ``tgate_batch.gate`` stays light.
"""
