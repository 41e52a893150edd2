"""Metrics of images and of the run, as functions of arrays and PIL images.

- ``features``, ``dinov2``, ``cmmd``, ``frechet``, ``moments``, ``kid``, ``precision_recall``,
  ``sampling``: sets of images
- ``jackknife``: confidence intervals
- ``base`` (the contract), ``psnr``, ``ssim``, ``lpips``, ``clip``, ``broken_images``: single images
- ``throughput``, ``cost``: time and money

No module imports torch before a network is loaded, so a report can be written without it.
"""
