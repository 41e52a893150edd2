"""Images that rows name: only images are kept, of allowed places, and nobody else is asked."""

import io
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.prompts.reader import read_prompts


@pytest.fixture
def images(tmp_path, png):
    """Reads a set of one row with this cell of images, in a folder of its own."""
    folder = tmp_path / "set"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "cat.png").write_bytes(png)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dog.png").write_bytes(png)
    (tmp_path / "other" / "secret.txt").write_text("KEY=secret")
    (folder / "link.png").symlink_to(tmp_path / "other" / "dog.png")

    def found(cell: str | bytes, **options) -> bytes | None:
        file = folder / "set.parquet"
        pq.write_table(pa.table({"caption": ["a"], "image": [cell]}), file)
        (prompt,) = read_prompts(Prompts(path=str(file), image_column="image", **options))
        return prompt.image

    return found


def test_images_below_the_sets_folder_are_read(images, tmp_path, png):
    for cell in ("in/cat.png", "in/../in/cat.png", f"{tmp_path}/set/in/cat.png", png):
        assert images(cell) == png
    assert images(f"file://{tmp_path}/set/in/cat.png") == png


@pytest.mark.parametrize(
    "cell", ["../other/dog.png", "{}/other/dog.png", "link.png", "file://{}/other/dog.png"]
)
def test_images_elsewhere_are_read_where_the_config_allows_it(images, tmp_path, png, cell):
    cell = cell.format(tmp_path)
    with pytest.raises(UserError, match=r"row 1: .* is not below .*prompts\.image_roots\. Fix: "):
        images(cell)
    with pytest.raises(UserError, match="is not below"):
        images(cell, image_roots=[str(tmp_path / "oth")])
    assert images(cell, image_roots=[str(tmp_path / "other")]) == png


@pytest.mark.parametrize("cell", ["/proc/self/environ", "/etc/passwd", "~/.netrc"])
def test_files_of_the_machine_are_not_read(images, cell):
    with pytest.raises(UserError, match="is not below the prompt set's folder"):
        images(cell)


def test_no_endpoint_is_spoken_to_that_only_a_row_names(images):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        cell = f"s3://bucket/x.png?endpoint_override=127.0.0.1:{port}&scheme=http"
        for roots in ([], ["s3://bucket/?region=us-east-1"]):
            with pytest.raises(UserError, match="is not below"):
                images(cell, image_roots=roots)
        with pytest.raises(BlockingIOError):
            server.accept()


PS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"


@pytest.mark.parametrize("content", [b"KEY=secret", PS, b"GIF89a", b"\x89PNG\r\n\x1a\n", b" "])
def test_bytes_that_are_no_image_are_refused(images, tmp_path, content):
    (tmp_path / "set" / "x.png").write_bytes(content)
    for cell in (content, "x.png"):
        with pytest.raises(UserError, match=r"row 1: image .* cannot be read as an image"):
            images(cell)


def test_image_that_ends_too_early_is_refused(images):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(content, "PNG")
    with pytest.raises(UserError, match="row 1: image bytes cannot be read as an image"):
        images(content.getvalue()[:2000])
