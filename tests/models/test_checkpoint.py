import pytest

from tgate_batch.config import OWN_SCHEDULER, Model, Sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline, locate_checkpoint, resolved_dtype
from tgate_batch.models.files import variant_of


@pytest.mark.parametrize(
    ("dtype", "device", "resolved"),
    [
        ("auto", "cuda", "float16"),
        ("auto", "cuda:1", "float16"),
        ("auto", "cpu", "float32"),
        ("bfloat16", "cuda", "bfloat16"),
        ("float16", "cpu", "float16"),
    ],
)
def test_auto_is_half_precision_on_a_gpu_alone(dtype, device, resolved):
    assert resolved_dtype(Model(name="sd15", dtype=dtype), device) == resolved


def test_half_precision_files_are_read_of_the_documented_checkpoint_alone():
    assert variant_of(Model(name="sd15"), "float16") == "fp16"
    assert variant_of(Model(name="sd15"), "float32") is None
    assert variant_of(Model(name="sd15", path="some/finetune"), "float16") is None


def test_folder_that_is_not_there_is_told():
    with pytest.raises(UserError, match="/no/such is not a diffusers folder"):
        locate_checkpoint(Model(name="sd15", path="/no/such"))


def test_pipeline_loads_in_the_dtype_and_with_the_scheduler_that_were_chosen(tiny):
    import torch

    model = Model(name="sd15", path=tiny)
    sampling = catalogue.resolve("sd15", Sampling(scheduler="EulerDiscreteScheduler"))
    pipeline = load_pipeline(model, sampling, "cpu", "bfloat16")
    assert pipeline.unet.dtype == torch.bfloat16
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    own = sampling.model_copy(update={"scheduler": OWN_SCHEDULER})
    assert type(load_pipeline(model, own, "cpu").scheduler).__name__ == "PNDMScheduler"


def test_scheduler_that_diffusers_does_not_have_is_told(tiny):
    sampling = catalogue.resolve("sd15", Sampling(scheduler="NoScheduler"))
    with pytest.raises(UserError, match="diffusers has no scheduler 'NoScheduler'"):
        load_pipeline(Model(name="sd15", path=tiny), sampling, "cpu")
