"""Benchmarks: what is compared is measured side by side in one run, and a ratio comes out."""
