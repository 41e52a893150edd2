"""All arms compared with their baseline: ``report.json``, ``report.md`` and a page."""
