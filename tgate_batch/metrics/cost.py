"""From throughput to money."""


def usd_per_1000_images(
    images_per_second_per_worker: float | None, usd_per_gpu_hour: float | None
) -> float | None:
    """$ for 1,000 images on workers of one device each; None where either figure is not known.

    The number of workers cancels: twice as many cost twice as much for half as long.
    """
    if not images_per_second_per_worker or usd_per_gpu_hour is None:
        return None
    return 1000 / images_per_second_per_worker * usd_per_gpu_hour / 3600
