"""Opens zip archives whose contents are not much larger than their files."""

import contextlib
import errno
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

# What `zipfile` raises where an archive or an entry is damaged, except OSError without a number.
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError)
_MAX_ENTRIES = 50_000
# Ten kilobytes can be made into ten gigabytes of zeros. Honest weights hardly shrink, and masks and
# label images by a factor of some ten; small files may do as they like.
_MAX_GROWTH = 100
_ALWAYS_ALLOWED_BYTES = 1 << 28


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Opens an archive for reading, after a look at the sizes that it declares.

    Reading an entry never yields more bytes than are declared for it.

    Raises:
        OSError: the file cannot be opened.
        ValueError, zipfile.BadZipFile: no archive, one with too many or too large entries, or with
            entries that are encrypted or packed in another way than `deflate`. `zipfile` raises
            more kinds on damaged archives; none of these names the file.
    """
    # Opened here: `zipfile` leaves the file open where the content is not what it expects.
    with open(path, "rb") as file, _archive(file) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise ValueError(f"{len(entries)} entries, more than {_MAX_ENTRIES}")
        for entry in entries:
            # The other methods unpack everything at once, whatever size was declared.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{entry.filename[:100]}: packed in another way than by deflate")
            if entry.header_offset < 0:
                raise ValueError(f"{entry.filename[:100]}: before the beginning of the file")
            if entry.flag_bits & 1:
                raise ValueError(f"{entry.filename[:100]}: encrypted")
        size = sum(entry.file_size for entry in entries)
        limit = max(_ALWAYS_ALLOWED_BYTES, _MAX_GROWTH * os.fstat(file.fileno()).st_size)
        if size > limit:
            raise ValueError(f"would unpack to {size} bytes, more than {limit}")
        yield archive


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("the directory begins before the file") from error
