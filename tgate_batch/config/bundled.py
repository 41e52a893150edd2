"""The bundled configs by name, and where to get the data files that they need."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a checkout


_SOURCES = {  # of data files that bundled configs need and that the package does not include
    "captions_val2014.json": (
        "unpack annotations/captions_val2014.json from annotations_trainval2014.zip of "
        "cocodataset.org, and put it here"
    ),
    "mlperf_coco2014_5k_captions.tsv": (
        "download text_to_image/coco2014/captions/captions_source.tsv from "
        "github.com/mlcommons/inference, and save it here under this name"
    ),
    "coco2014-{extractor}.npz": (
        "unpack val2014.zip of cocodataset.org here, then run tgate-batch reference --config "
        "coco10k --from val2014/"
    ),
    "pictures.csv": (
        "write a file with a column `image` of paths to your own images, e.g. (echo image; ls "
        "pictures/*) > pictures.csv"
    ),
}


def source_of(file: str) -> str | None:
    """Returns how to get a file that a bundled config needs; None if it is not a known file."""
    return _SOURCES.get(file)


def names() -> list[str]:
    """Returns the names of the bundled configs."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def find(given: str) -> Path:
    """Returns the given file, or the bundled config with this name."""
    file = _folder() / f"{given}.yaml"
    is_name = not Path(given).exists() and "/" not in given
    return file if is_name and file.is_file() else Path(given)


def _folder() -> Path:
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
