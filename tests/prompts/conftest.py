import io

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def png() -> bytes:
    """An image of 2 x 2 pixels."""
    content = io.BytesIO()
    Image.new("L", (2, 2)).save(content, "PNG")
    return content.getvalue()
