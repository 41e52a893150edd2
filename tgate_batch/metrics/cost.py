"""Converts device time to money: per 1,000 images, and for all devices that a run reserved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tgate_batch.config import Cost, Workers


@dataclass(frozen=True)
class Devices:
    """The devices of one worker: ``each`` devices of a kind, at ``usd_per_hour`` per device.

    A worker with a GPU, or a share of one, is billed by GPUs, one without by CPUs.
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
        """The config key of the price."""
        return f"cost.usd_per_{self.kind.lower()}_hour"

    @property
    def unpriced(self) -> str | None:
        """Why there is no price; None if there is one."""
        if self.usd_per_hour is not None:
            return None
        has = "a GPU" if self.kind == "GPU" else "no GPU"
        return f"{self.key} is not given, and workers have {has}"

    def hours(self, worker_seconds: float) -> float:
        """Returns the device hours of a worker's seconds."""
        return worker_seconds * self.each / 3600

    def usd(self, worker_seconds: float) -> float | None:
        """Returns the price in $ of a worker's seconds; None if no price is set."""
        price = self.usd_per_hour
        return None if price is None else self.hours(worker_seconds) * price


def usd_per_1000_images(
    images_per_second_per_worker: float | None, devices: Devices
) -> float | None:
    """Returns the marginal $ of 1,000 images: denoising and decoding; None if it is unknown.

    It does not depend on the number of workers: twice as many cost twice as much for half the time.
    """
    if not images_per_second_per_worker:
        return None
    return devices.usd(1000 / images_per_second_per_worker)


def bill(invocations: Iterable[Mapping[str, Any]], cost: Cost, workers: Workers) -> dict[str, Any]:
    """Returns the devices that all invocations reserved, and their price.

    ``invocations`` are entries of the history. One without workers or a known duration costs
    nothing. An entry of an older version that rendered counts as one worker of ``workers``. ``usd``
    is None if a price is missing or no invocation had workers; ``withheld`` is the reason.
    """
    usd, hours, wall, count = 0.0, 0.0, 0.0, 0
    used: set[Devices] = set()
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
            used.add(devices)
            hours += devices.hours(seconds * at_once)
            usd += devices.usd(seconds * at_once) or 0.0
    unpriced = sorted({reason for devices in used if (reason := devices.unpriced)})
    withheld = "; ".join(unpriced) if used else "no recorded invocation had a worker"
    kinds = {devices.kind for devices in used} or {
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
    """Divides a total ($, Wh) among arms by their device seconds; returns it per 1,000 images.

    Only images that are not broken count as delivered. Each arm's result times its delivered
    images, over 1,000, adds up to the total. An arm without delivered images gets None and no
    share. If the device seconds of an arm are unknown, the total is divided by delivered images.
    """
    delivered = [arm["images"] - arm["broken"] for arm in arms]
    seconds = [_device_seconds(arm) if n else 0.0 for arm, n in zip(arms, delivered, strict=True)]
    known = all(s for s, n in zip(seconds, delivered, strict=True) if n)
    weights = [s or 0.0 for s in seconds] if known else delivered
    whole = sum(weights)
    return [
        1000 * total * weight / whole / count if count else None
        for weight, count in zip(weights, delivered, strict=True)
    ]


def _device_seconds(arm: Mapping[str, Any]) -> float | None:
    """Device seconds of all batches of an arm; else extrapolated from the timed ones."""
    if arm.get("device_seconds") is not None:
        return arm["device_seconds"]
    rate = arm["images_per_second_per_worker"]
    return arm["images"] / rate if rate else None
