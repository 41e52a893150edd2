"""The estimate of a dry run: images and MACs of each arm, hours and cost of them all."""

from tgate_batch import console
from tgate_batch.config import effective_sampling
from tgate_batch.metrics.cost import Devices
from tgate_batch.output.run import Prepared, finished

# A worker's assumed sustained rate.
_MACS_PER_SECOND = {"GPU": 100e12, "CPU": 0.03e12}


def log_estimate(run: Prepared) -> None:
    """Logs the images, MACs and finished shards of each arm, and the estimated cost."""
    from tgate_batch.models.macs.arm import macs_of_arm  # slow to import
    from tgate_batch.models.macs.hollow import MacsUnknown

    done = finished(run)
    total = 0.0
    for model, name, arm in run.pairs():
        sampling = run.sampling(model.name)
        try:
            macs_of_prompts = sum(
                macs_of_arm(
                    model, arm, effective_sampling(sampling, row=key)
                ).per_image_with_attention
                * prompts
                for key, prompts in run.batch_keys.items()
            )
        except MacsUnknown as error:
            macs = f"not in the estimate: {error}"
        else:
            macs_per_image = macs_of_prompts / run.prompts
            total += macs_per_image * run.images_per_arm
            macs = f"{macs_per_image / 1e9:,.1f} G MACs per image"
        console.info(
            f"  {model.name} {name}: {run.images_per_arm:,} images, {macs}, "
            f"{len(done[model.name, name]):,} of {len(run.shards):,} shards finished"
        )
    config = run.config
    devices = Devices.of(config.cost, config.workers.gpus_each, config.workers.cpus_each)
    rate = _MACS_PER_SECOND[devices.kind]
    usd = devices.usd(total / rate)
    cost = f"no price given ({devices.key})" if usd is None else f"${usd:,.2f}"
    console.info(
        f"estimate: {devices.hours(total / rate):,.2f} {devices.kind} hours at {rate / 1e12:g} T "
        f"MACs/s per worker, {cost}; a run measures both, and includes starting and waiting"
    )
