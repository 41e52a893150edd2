import pytest

from tgate_batch.metrics.cost import usd_per_1000_images


def test_one_image_a_second_at_3_6_dollars_an_hour_is_a_dollar_per_1000():
    assert usd_per_1000_images(1.0, 3.6) == pytest.approx(1.0)


def test_twice_as_fast_costs_half():
    assert usd_per_1000_images(4.0, 7.2) == pytest.approx(usd_per_1000_images(2.0, 7.2) / 2)


@pytest.mark.parametrize(("rate", "price"), [(None, 3.6), (0.0, 3.6), (1.0, None)])
def test_cost_is_unknown_where_rate_or_price_is(rate, price):
    assert usd_per_1000_images(rate, price) is None


def test_a_free_device_costs_nothing():
    assert usd_per_1000_images(1.0, 0.0) == 0.0
