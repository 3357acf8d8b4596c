"""Files of a dataset that are missing, or not as they were written."""

from __future__ import annotations

import pyarrow as pa

from mgray.data.storage import FileSum, Folder, unreadable
from mgray.errors import DataError


def whole_file(folder: Folder, root: str, file: FileSum) -> pa.Buffer:
    """All of a file of the dataset.

    Raises:
        DataError: it is missing, of another size, or cannot be read.
    """
    try:
        content = folder.read(file.name)
    except FileNotFoundError:
        raise missing(root, file) from None
    except OSError as error:
        raise unreadable(root, error) from None
    check_size(root, file, len(content))
    return content


def check_size(root: str, file: FileSum, num_bytes: int | None) -> None:
    """Raise DataError where a file has not the size that it was written with, or none at all."""
    if num_bytes is None:
        raise missing(root, file)
    if num_bytes != file.num_bytes:
        raise damaged(root, file, f"it has {num_bytes} bytes instead of {file.num_bytes}")


def missing(root: str, file: FileSum) -> DataError:
    """The error of a file that is not there."""
    return DataError(
        "data.path", root, f"its file {file.name} is missing", "copy the whole folder, or ingest the videos again"
    )


def damaged(root: str, file: FileSum, problem: str) -> DataError:
    """The error of a file whose content is not what was written."""
    return DataError(
        "data.path", root, f"{file.name} is damaged ({problem})", "delete the folder and ingest the videos again"
    )
