"""All arms beside their baseline: ``report.json``, ``report.md`` and one self-contained page."""
