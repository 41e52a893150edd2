"""What the pictures and the run are worth. Plain arrays and PIL images in, numbers out; no Ray.

- ``features``, ``frechet``, ``kid``, ``precision_recall``, ``intervals``, ``reservoir``  sets of
  pictures
- ``entry`` (what a metric says of itself), ``psnr``, ``ssim``, ``lpips``, ``clip``, ``broken``  one
  picture at a time
- ``throughput``, ``cost``  what they took

Nothing here imports torch before something is loaded, so a report is made without it.
"""
