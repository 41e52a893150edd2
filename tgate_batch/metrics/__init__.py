"""What the pictures and the run are worth. Plain arrays and PIL images in, numbers out; no Ray.

- ``features``, ``reference``, ``frechet``, ``kid``, ``coverage``, ``intervals``  sets of pictures
- ``per_picture``, ``paired``, ``clip``, ``prompt_accuracy``, ``broken``  one picture at a time
- ``throughput``, ``cost``, ``macs``  what they took

This module imports nothing, so that a report can be made without loading torch.
"""
