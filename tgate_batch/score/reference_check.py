"""Checks a config's references before anything is rendered; loads no network."""

from tgate_batch.config import Config
from tgate_batch.errors import Problems, StorageError, UserError
from tgate_batch.metrics.features import UnloadedExtractor
from tgate_batch.score import image_sources
from tgate_batch.score.reference import is_file, load_reference
from tgate_batch.score.registry import check_reference, reference_of, weights_of
from tgate_batch.storage.images import open_image

_LEAST = 2  # images: fewer have no covariance


def check_references(config: Config) -> None:
    """Raises UserError with a line for each reference of a config that cannot be used.

    An ``.npz`` is read completely: names, shapes, finite values, and its extractor. A source of
    images is listed, and its first image is decoded.
    """
    problems = Problems()
    for name in config.score.extractor:
        where = reference_of(config.score, name)
        if where is None or where == "drawn":
            continue
        with problems.collected():
            check_reference(config.score, name)
            _check_usable(config, name, where)
    problems.raise_if_any()


def _check_usable(config: Config, name: str, where: str) -> None:
    try:
        if is_file(where):
            load_reference(where, UnloadedExtractor(name, weights_of(config.score, name)))
        else:
            _check_source(where, config.score.reference_skip_unreadable)
    except (UserError, StorageError) as error:
        raise UserError(f"score.reference: {error}") from None


def _check_source(where: str, skip_unreadable: bool) -> None:
    source = image_sources.open_source(where)
    if len(source) < _LEAST:
        raise UserError(f"reference {source.name} has one image, and a distance needs {_LEAST}")
    if skip_unreadable:
        return
    for name, content in source.parts[0].images():
        try:
            open_image(content)
        except UserError as error:
            raise UserError(f"reference {source.name}: {name} {error}") from None
        return
