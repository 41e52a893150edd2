import pytest
import torch

from tgate_batch.models.macs.call import count_call


def test_a_failed_count_leaves_torch_as_it_was():
    before = torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta"))

    def fail():
        layer(torch.empty(1, 2, device="meta"))
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        count_call(layer, fail, (), {})
    assert (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul) == before
    body = torch.nn.Sequential(torch.nn.Linear(2, 3, device="meta"))
    counted, _ = count_call(body, body.forward, (torch.empty(1, 2, device="meta"),), {})
    assert counted == (6, 6)
