"""Converts device time to money: per 1,000 images, and for all devices that a run reserved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tgate_batch.config import Cost, Workers


@dataclass(frozen=True)
class Devices:
    """What one worker holds: ``each`` devices of a kind, at ``usd_per_hour`` a device.

    A worker with a GPU, or a share of one, is paid by GPUs; one without, by CPUs.
    """

    kind: Literal["GPU", "CPU"]
    each: float
    usd_per_hour: float | None

    @classmethod
    def of(cls, cost: Cost, gpus_each: float, cpus_each: float) -> "Devices":
        if gpus_each:
            return cls("GPU", gpus_each, cost.usd_per_gpu_hour)
        return cls("CPU", cpus_each, cost.usd_per_cpu_hour)

    @property
    def key(self) -> str:
        """The config's key of the price."""
        return f"cost.usd_per_{self.kind.lower()}_hour"

    @property
    def unpriced(self) -> str | None:
        """Why there is no price; None where there is one."""
        if self.usd_per_hour is not None:
            return None
        has = "a GPU" if self.kind == "GPU" else "no GPU"
        return f"{self.key} is not given, and workers have {has}"

    def hours(self, worker_seconds: float) -> float:
        """Device hours in so many seconds of one worker."""
        return worker_seconds * self.each / 3600

    def usd(self, worker_seconds: float) -> float | None:
        """$ for so many seconds of one worker; None where no price is given."""
        price = self.usd_per_hour
        return None if price is None else self.hours(worker_seconds) * price


def usd_per_1000_images(
    images_per_second_per_worker: float | None, devices: Devices
) -> float | None:
    """The marginal $ of 1,000 images: denoising and decoding; None where it is not known.

    The number of workers cancels: twice as many cost twice as much for half as long.
    """
    if not images_per_second_per_worker:
        return None
    return devices.usd(1000 / images_per_second_per_worker)


def bill(invocations: Iterable[Mapping[str, Any]], cost: Cost, workers: Workers) -> dict[str, Any]:
    """Returns the devices that all invocations reserved, and their price.

    ``invocations`` are entries of the history. One that held no worker costs nothing, and neither
    does a time that nobody knows. An entry of an older version that drew held at least one worker
    of ``workers``, and counts so. ``usd`` is None where a price is missing or no worker was held;
    ``withheld`` then says why.
    """
    usd, hours, wall, count = 0.0, 0.0, 0.0, 0
    held: set[Devices] = set()
    for entry in invocations:
        seconds = entry.get("seconds") or 0.0
        at_once = entry.get("workers", 1 if entry.get("device") else 0)
        devices = Devices.of(
            cost,
            entry.get("gpus_each", workers.gpus_each),
            entry.get("cpus_each", workers.cpus_each),
        )
        count += 1
        wall += seconds
        if at_once:
            held.add(devices)
            hours += devices.hours(seconds * at_once)
            usd += devices.usd(seconds * at_once) or 0.0
    unpriced = sorted({reason for devices in held if (reason := devices.unpriced)})
    withheld = "; ".join(unpriced) if held else "no invocation on record held a worker"
    kinds = {devices.kind for devices in held} or {
        Devices.of(cost, workers.gpus_each, workers.cpus_each).kind
    }
    return {
        "usd": None if withheld else usd,
        "device_hours": hours,
        "devices": " and ".join(sorted(kinds)),
        "invocations": count,
        "wall_seconds": wall,
        "withheld": withheld or None,
    }


def per_1000_images(total: float, arms: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """A total ($, Wh) shared among arms by their device seconds, for 1,000 delivered images each.

    Delivered are images that are not broken; they pay for those that failed. So each arm's
    figure times its delivered images, over 1,000, adds up to the total. An arm that delivered
    none has None, and no share. Images count instead of device seconds where some arm's are not
    known.
    """
    delivered = [_delivered(arm) for arm in arms]
    seconds = [_device_seconds(arm) if n else 0.0 for arm, n in zip(arms, delivered, strict=True)]
    known = all(s for s, n in zip(seconds, delivered, strict=True) if n)
    weights = [s or 0.0 for s in seconds] if known else delivered
    whole = sum(weights)
    return [
        1000 * total * weight / whole / count if count else None
        for weight, count in zip(weights, delivered, strict=True)
    ]


def _delivered(arm: Mapping[str, Any]) -> int:
    return arm["images"] - arm["broken"]


def _device_seconds(arm: Mapping[str, Any]) -> float | None:
    """Of all batches of an arm; else of the measured ones, taken for all its images."""
    if arm.get("device_seconds") is not None:
        return arm["device_seconds"]
    rate = arm["images_per_second_per_worker"]
    return arm["images"] / rate if rate else None
