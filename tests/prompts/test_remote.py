"""A prompt set in an object store: moto's S3 server, asked over HTTP as any other."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from pyarrow import fs

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.output.prompt_plan import _sha256
from tgate_batch.prompts.reader import read_prompts

ROWS = b"id,caption,image\n1,a cat,pictures/cat.png\n2,a dog,pictures/dog.png\n"


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), shade).save(stream, "PNG")
    return stream.getvalue()


CAT, DOG = png(1), png(2)


def parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"id": ["1", "2"], "caption": ["a cat", "a dog"]}), stream)
    return stream.getvalue()


CONTENT = {
    "set.csv": ROWS,
    "set.parquet": parquet(),
    "more/set.csv": ROWS,
    "half.csv": ROWS + b"3,caf\xe9,x\n",
    "pictures/cat.png": CAT,
    "pictures/dog.png": DOG,
}


@pytest.fixture(scope="module")
def server():
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    place = f"127.0.0.1:{made.get_host_and_port()[1]}"
    store = fs.S3FileSystem(
        endpoint_override=place,
        scheme="http",
        region="us-east-1",
        access_key="key",
        secret_key="secret",
        allow_bucket_creation=True,
    )
    store.create_dir("bucket")
    for name, content in CONTENT.items():
        with store.open_output_stream(f"bucket/{name}") as stream:
            stream.write(content)
    yield place
    made.stop()


@pytest.fixture
def uri(server):
    """The URI of an object, with a password in it."""
    options = f"?endpoint_override={server}&scheme=http&region=us-east-1"
    return lambda name, bucket="bucket": f"s3://key:secret@{bucket}/{name}{options}"


@pytest.mark.parametrize("name", ["set.csv", "set.parquet"])
def test_prompts_are_read_from_a_bucket(uri, name):
    found = [(prompt.id, prompt.text) for prompt in read_prompts(Prompts(path=uri(name)))]
    assert found == [("1", "a cat"), ("2", "a dog")]


@pytest.mark.parametrize("name", ["*.parquet", "more", "more/", "more/*.csv"])
def test_patterns_and_folders_of_a_bucket_are_read(uri, name):
    found = [(prompt.id, prompt.text) for prompt in read_prompts(Prompts(path=uri(name)))]
    assert found == [("1", "a cat"), ("2", "a dog")]


@pytest.mark.parametrize(
    ("name", "said"), [("*.tsv", "matches no prompt file"), ("pictures", "is a folder without")]
)
def test_a_bucket_that_holds_none_is_named(uri, name, said):
    with pytest.raises(UserError) as caught:
        list(read_prompts(Prompts(path=uri(name))))
    assert said in str(caught.value)
    assert f"looked in s3://bucket/{'' if '*' in name else name}".rstrip("/") in str(caught.value)
    assert "secret" not in str(caught.value)


def test_pictures_are_read_from_beside_the_prompts(uri):
    spec = Prompts(path=uri("set.csv"), image_column="image")
    assert [prompt.image for prompt in read_prompts(spec)] == [CAT, DOG]


def test_change_of_the_source_is_noticed_by_its_bytes(uri):
    assert _sha256(Prompts(path=uri("set.csv"))) == hashlib.sha256(ROWS).hexdigest()
    assert _sha256(Prompts(path=uri("none.csv"))) is None


@pytest.mark.parametrize(
    ("name", "bucket", "said"),
    [
        ("none.csv", "bucket", "prompts file s3://bucket/none.csv"),
        ("set.csv", "none", "prompts file s3://none/set.csv"),
        ("pictures.csv", "bucket", "does not exist"),
        ("half.csv", "bucket", "row 4: not UTF-8 (byte 0xe9)"),
    ],
)
def test_what_cannot_be_read_is_one_line_without_the_password(uri, name, bucket, said):
    with pytest.raises(UserError) as caught:
        list(read_prompts(Prompts(path=uri(name, bucket))))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
