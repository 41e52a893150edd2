"""Text-to-image pipelines of diffusers without a family file: read from the pipeline itself."""
