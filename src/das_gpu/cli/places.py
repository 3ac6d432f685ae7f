"""What commands are given by position: where a recording is, and where a run goes.

They are texts, never paths, since a path would lose one of the slashes in ``https://``; that a
path is among their types lets shells complete them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Source = Annotated[
    str | Path,
    Parameter(
        help="A folder, an index as `das-gpu index` writes it, an https:// address of Azure Blob "
        "Storage, az://, s3://, gs://, or demo:, a synthetic recording made on first use."
    ),
]
Out = Annotated[
    str | Path,
    Parameter(
        help="Folder for the images, made when it is not there, or a container of Azure Blob "
        "Storage and a prefix, as https:// or az:// address."
    ),
]
Run = Annotated[
    str | Path,
    Parameter(
        help="What was given to extract as OUT: a folder, or an address of Azure Blob Storage."
    ),
]
