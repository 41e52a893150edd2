"""Benchmarks: what is compared is measured side by side in one run, and printed as ratios.

They are run in a checkout of the repository, as ``tgate-batch bench NAME``, and are not part of the
installed package. ``command.py`` lists them; each is one function of its module.
"""
