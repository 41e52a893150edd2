"""Metrics of images and of the run: arrays and PIL images in, numbers out; no Ray.

- ``features``, ``dinov2``, ``cmmd``, ``frechet``, ``moments``, ``kid``, ``precision_recall``,
  ``reservoir``  sets of images
- ``jackknife``  how sure a figure is
- ``entry`` (what a metric says of itself), ``psnr``, ``ssim``, ``lpips``, ``clip``, ``broken``  one
  image at a time
- ``throughput``, ``cost``  what they took

Nothing here imports torch before something is loaded, so a report is made without it.
"""
