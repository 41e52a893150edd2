"""The configs that come with the package, by their names."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a checkout


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
