"""The dataset card: it makes an output folder a data set that ``datasets.load_dataset`` opens."""

import hashlib

from tgate_batch.output import layout
from tgate_batch.storage import Folder

_MARK = "<!-- written by tgate_batch -->"
_CARD = """---
configs:
- config_name: default
  data_files: {files}
  version: {version}
---
{mark}

# Pictures rendered by tgate_batch

One row is one picture: its `model` and `arm`, the prompt with its id, the seed, the picture and
what it took to make it. Rows that failed have `status` error and say why.

```python
datasets.load_dataset("{folder}")
```

`{run}` has the settings, `{ledger}` what each folder's files are made of, and `{history}` who made
them.
"""


def write(folder: Folder) -> None:
    """Writes the card, unless the folder has a README of somebody else.

    `datasets` keeps a prepared copy of a data set by its configuration, so the card's version
    follows the files: 0.x.y, where x and y are digits of a hash over their names and sizes.
    """
    held = folder.get(layout.CARD)
    if held is not None and _MARK.encode() not in held:
        return
    files = "\n".join(map(str, folder.sizes(layout.IMAGES))).encode()
    digest = int.from_bytes(hashlib.sha256(files).digest()[:6], "big")
    folder.write(
        layout.CARD,
        _CARD.format(
            files=layout.IMAGE_FILES,
            version=f"0.{digest >> 24}.{digest & 0xFFFFFF}",
            mark=_MARK,
            folder=folder,
            run=layout.RUN,
            ledger=layout.LEDGER,
            history=layout.HISTORY,
        ),
    )
