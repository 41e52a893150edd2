import pytest

from tgate_batch.config import Cost, Workers
from tgate_batch.metrics.cost import Devices, bill, per_1000_images, usd_per_1000_images

PRICES = Cost(usd_per_gpu_hour=3.6, usd_per_cpu_hour=0.36)
NO_PRICE = Cost()


def marginal(rate, gpus_each=1.0, cpus_each=1, cost=PRICES):
    return usd_per_1000_images(rate, Devices.of(cost, gpus_each, cpus_each))


def invocation(seconds, workers, gpus_each=0.0, cpus_each=1):
    return {
        "seconds": seconds,
        "workers": workers,
        "gpus_each": gpus_each,
        "cpus_each": cpus_each,
    }


def billed(*entries, cost=PRICES, gpus_each=0.0):
    return bill(entries, cost, Workers(gpus_each=gpus_each))


def arm(images, broken=0, rate=None, **more):
    return {"images": images, "broken": broken, "images_per_second_per_worker": rate} | more


def test_one_image_a_second_at_3_6_dollars_an_hour_is_a_dollar_per_1000():
    assert marginal(1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gpus_each", "cpus_each", "usd"),
    [(0, 1, 0.1), (0, 4, 0.4), (0.5, 1, 0.5), (2, 1, 2.0), (2, 8, 2.0)],
)
def test_a_worker_costs_its_gpus_or_its_cpus_without(gpus_each, cpus_each, usd):
    assert marginal(1.0, gpus_each, cpus_each) == pytest.approx(usd)
    hour = invocation(1000, 1, gpus_each, cpus_each)
    assert billed(hour)["usd"] == pytest.approx(usd)


def test_twice_as_fast_costs_half():
    assert marginal(4.0) == pytest.approx(marginal(2.0) / 2)


@pytest.mark.parametrize(("rate", "cost"), [(None, PRICES), (0.0, PRICES), (1.0, NO_PRICE)])
def test_cost_is_unknown_where_rate_or_price_is(rate, cost):
    assert marginal(rate, cost=cost) is None


def test_a_free_device_costs_nothing():
    assert marginal(1.0, cost=Cost(usd_per_gpu_hour=0)) == 0.0
    assert billed(invocation(9, 1, 1), cost=Cost(usd_per_gpu_hour=0))["usd"] == 0.0


def test_bill_is_wall_clock_times_workers_times_devices():
    found = billed(invocation(1800, 2), invocation(3600, 3, cpus_each=2))
    assert found == {
        "usd": pytest.approx((0.5 * 2 + 1 * 3 * 2) * 0.36),
        "device_hours": pytest.approx(7),
        "devices": "CPU",
        "invocations": 2,
        "wall_seconds": 5400,
        "withheld": None,
    }


def test_invocation_without_workers_or_of_unknown_length_costs_nothing():
    alone, lost = invocation(3600, 0, 1), invocation(None, 2, 1)
    found = billed(invocation(3600, 1, 1), alone, lost)
    assert (found["usd"], found["invocations"]) == (pytest.approx(3.6), 3)
    assert billed(alone)["withheld"] == "no recorded invocation had a worker"


def test_entry_of_an_older_version_counts_one_worker_of_today_if_it_drew():
    drew, looked = {"seconds": 3600, "device": "H100"}, {"seconds": 60, "device": None}
    found = billed(drew, looked, gpus_each=2)
    assert (found["usd"], found["devices"]) == (pytest.approx(7.2), "GPU")


def test_a_device_without_a_price_leaves_no_bill_and_says_why():
    found = billed(invocation(60, 1), invocation(60, 1, 1), cost=Cost(usd_per_gpu_hour=1))
    assert found["usd"] is None
    assert found["withheld"] == "cost.usd_per_cpu_hour is not given, and workers have no GPU"
    assert found["devices"] == "CPU and GPU"


def test_shares_follow_device_seconds_and_add_up_to_the_bill():
    arms = [arm(100, 0, 2.0), arm(100, 20, 4.0), arm(50, 0, 1.0, device_seconds=25.0)]
    found = per_1000_images(3.0, arms)  # 50, 25 and 25 of 100 seconds
    assert found == pytest.approx([1.5 * 10, 0.75 * 1000 / 80, 0.75 * 20])
    delivered = [a["images"] - a["broken"] for a in arms]
    assert sum(f / 1000 * n for f, n in zip(found, delivered, strict=True)) == pytest.approx(3.0)


def test_arm_that_delivered_nothing_is_paid_by_the_others():
    assert per_1000_images(3.0, [arm(5, 5, 1.0), arm(10, 0, 1.0)]) == [None, 300.0]


def test_pictures_count_where_device_seconds_are_unknown():
    assert per_1000_images(3.0, [arm(10, 0, 1.0), arm(20)]) == [100.0, 100.0]
