"""The configs that come with the package, by their names; and where to get the files they name."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a checkout


_SOURCES = {  # of a file that a shipped config names and that does not come with the package
    "captions_val2014.json": (
        "unpack it here from annotations_trainval2014.zip of cocodataset.org, which holds it as "
        "annotations/captions_val2014.json"
    ),
    "mlperf_coco2014_5k_captions.tsv": (
        "save it here from github.com/mlcommons/inference, which holds it as "
        "text_to_image/coco2014/captions/captions_source.tsv"
    ),
    "coco2014-{extractor}.npz": (
        "unpack val2014.zip of cocodataset.org here, then tgate-batch reference --config coco10k "
        "--from val2014/ makes it"
    ),
    "pictures.csv": (
        "a column `image` of paths to pictures of your own, as (echo image; ls pictures/*) > "
        "pictures.csv writes it"
    ),
}


def source_of(file: str) -> str | None:
    """How to get a file that a shipped config names, if it is one that has to be got."""
    return _SOURCES.get(file)


def names() -> list[str]:
    """What can be given in place of a config's file."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def find(given: str) -> Path:
    """The file that was given, or the shipped config of this name."""
    file = _folder() / f"{given}.yaml"
    is_name = not Path(given).exists() and "/" not in given
    return file if is_name and file.is_file() else Path(given)


def _folder() -> Path:
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
