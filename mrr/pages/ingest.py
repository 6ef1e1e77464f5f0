"""Files, folders and images in memory, as a stream of canonical pages."""

from __future__ import annotations

import base64
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeGuard, cast, runtime_checkable

from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.canonical import canonical, check_pixels
from mrr.pages.naming import NOT_FETCHED, display_name, is_url
from mrr.pages.refusal import Refused
from mrr.pages.sandbox import Decoder, check_size
from mrr.types import FailedFile, PageImage


@runtime_checkable
class Readable(Protocol):
    """A file that the caller has opened, in binary mode."""

    def read(self, size: int, /) -> bytes:
        """At most so many of its bytes; none at its end."""


# What a page may be read from; a picture is one that is in memory already.
InHand = bytes | bytearray | memoryview | Readable | Image.Image
Content = InHand | Path
_Source = bytes | bytearray | memoryview | Readable | Path
# The same as a caller may hand it over: a path may be a folder's, and a name may come with it.
File = str | Content | tuple[str, str | Content] | tuple[None, InHand]
_DATA_URL = re.compile(r"data:[^\s,]*,", re.IGNORECASE)  # "data: by region, 2024" is a query
_AT_ONCE = 64 * 2**20  # bytes; more than most files have
# Only for choosing files out of a folder; what a file is, its content says.
_EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".pdf"),
)


def expand(
    paths: Iterable[str | Path],
) -> tuple[list[tuple[str, Path]], list[FailedFile]]:
    """Files as (name, path), folders as the page files in them: recursive, sorted, none twice.

    A file found in a folder is named by its way from there, so that reports of the same name can
    be told apart. Hidden files and folders within a folder are left out. The second list has the
    paths that do not exist, the folders that may not be read and those without such files.
    """
    found: dict[Path, str] = {}
    failed: list[FailedFile] = []
    for path in (Path(os.path.expanduser(path)) for path in paths):
        shown, closed = display_name(str(path)), list[Path]()
        try:
            inside = sorted(_page_files(path, closed)) if path.is_dir() else [path]
            exists = path.exists()
        except OSError:  # a name too long to be one
            inside, exists = [], False
        for file in inside if exists else ():
            found.setdefault(file, _name_within(path, file))
        for unread in closed:
            name = _name_within(path, unread)
            failed.append(FailedFile(name, f"The folder {name} may not be read."))
        if closed and not inside:
            continue
        if not exists:
            why = f"is {NOT_FETCHED}" if is_url(str(path)) else "does not exist. Check its name."
            failed.append(FailedFile(shown, f"{shown} {why}"))
        elif not inside:
            folder = display_name(path.resolve().name)
            reason = "holds no PNG, JPEG, WebP, GIF, TIFF or PDF file. Choose another folder."
            failed.append(FailedFile(shown, f"The folder {folder} {reason}"))
    return [(name, file) for file, name in found.items()], failed


def _name_within(root: Path, file: Path) -> str:
    """What a file is called that was found under root, or is root itself."""
    parts = file.relative_to(root).parts or (file.name or file.resolve().name,)  # "." has none
    return " › ".join(map(display_name, parts))  # a name is a label, and no label looks like a path


def several(files: Iterable[File] | File) -> Iterable[File]:
    """One file or many, as many; a tuple is one file where it is a name and what is in hand.

    A tuple of two paths is two files, although within a list it is a name and a path. An array is
    one thing that is refused, not one for each of its rows.
    """
    is_array = hasattr(files, "__array_interface__")  # no file, and its rows are none either
    if _has_name(files):
        one = isinstance(files[1], InHand) or (is_data_url(files[1]) and not is_data_url(files[0]))
    else:
        one = is_array or isinstance(files, str | Content) or _lacks_name(files)
    return cast(Iterable[File], [files] if one else files)


def _has_name(file: object) -> TypeGuard[tuple[str, object]]:
    return isinstance(file, tuple) and len(file) == 2 and isinstance(file[0], str)


def _lacks_name(file: object) -> TypeGuard[tuple[None, InHand]]:
    """Whether it is (None, stream), as a service has an upload that came without a name."""
    if not isinstance(file, tuple) or len(file) != 2:
        return False
    return file[0] is None and isinstance(file[1], InHand)


def contents(file: File) -> tuple[list[tuple[str, Content]], list[FailedFile]]:
    """A file as (name, content) pairs; a folder is the page files in it.

    The second list has a path that is not there, and the folders that may not be read. Raises
    InputRejected for what no page can be read from.
    """
    if _lacks_name(file):
        return contents(file[1])
    if _has_name(file):
        name, content = file
        if is_data_url(content):
            return [(name, of_data_url(content, display_name(name)))], []
        if isinstance(content, str | Content):
            return [(name, _path(content) if isinstance(content, str) else content)], []
    if isinstance(file, Image.Image):
        return [("image", file)], []
    if isinstance(file, InHand):
        return [(_own_name(file), file)], []
    if is_data_url(file):
        return [("file", of_data_url(file, "The file"))], []
    if isinstance(file, str | Path):
        found, failed = expand([_path(file)])
        return [*found], failed
    raise InputRejected(
        f"A page cannot be read from {type(file).__name__}. Give a path, encoded bytes, a data "
        "URL, a file opened in binary mode, a PIL image, or (name, one of these)."
    )


def _path(given: str | Path) -> Path:
    if given == "":  # as a path it would be the current folder
        raise InputRejected("The name of a file is empty. Give its path.")
    return Path(given)


def is_data_url(given: object) -> TypeGuard[str]:
    """Whether it is a file in a string, which is how a picture travels in JSON."""
    return isinstance(given, str) and _DATA_URL.match(given) is not None


def of_data_url(url: str, name: str) -> bytes:
    """The file in a data URL. Raises InputRejected, which calls it by name."""
    head, _, body = url.partition(",")
    try:
        if head.casefold().endswith(";base64"):
            return base64.b64decode(body, validate=True)
    except ValueError:
        pass
    raise InputRejected(f"{name} is a data URL that is not base64; write data:image/png;base64,...")


def _own_name(file: object) -> str:
    """The name under which a file was opened, where it has one; a pipe's is a number."""
    name = getattr(file, "name", None)
    return (Path(name).name if isinstance(name, str) else "") or "file"


def read_pages(
    decoder: Decoder, files: Iterable[tuple[str, Content]], page_range: str | None = None
) -> Iterator[PageImage | FailedFile]:
    """Yield the pages of every file in turn, and a FailedFile for each file or page with a fault.

    files: (name, content or where to read it). A fault in one file does not touch the others,
    nor its own other pages.
    """
    for name, source in files:
        try:
            if isinstance(source, Image.Image):
                yield from_pil(source, name, decoder.limits)
                continue
            yield from decoder.pages(name, _read(source, name, decoder.limits), page_range)
        except Refused as refused:
            yield FailedFile(display_name(name), refused.sentence(display_name(name)))
        except InputRejected as error:
            yield FailedFile(display_name(name), str(error))


def from_pil(image: Image.Image, label: str, limits: Limits) -> PageImage:
    """Make a page of an image in memory; equal pixels give the page that a file would give.

    Raises InputRejected for what cannot be a page, a lazily opened file that is damaged included.
    """
    shown = display_name(label)
    try:
        check_pixels(image.width, image.height, limits.max_image_pixels)
        upright = canonical(image)
    except Refused as refused:
        raise InputRejected(refused.sentence(shown)) from None
    except Exception:  # Pillow reads the pixels only now, and raises almost anything
        raise InputRejected(Refused("damaged").sentence(shown)) from None
    page = Image.new("RGB", upright.size)  # a copy: no metadata, and not the caller's own object
    page.paste(upright)
    return PageImage(page, shown, shown, 1)


def read_bytes(source: _Source, name: str, limits: Limits) -> bytes:
    """What is in a file of allowed size; InputRejected for another."""
    try:
        return _read(source, name, limits)
    except Refused as refused:
        raise InputRejected(refused.sentence(display_name(name))) from None


def _page_files(folder: Path, closed: list[Path]) -> Iterator[Path]:
    """Page files in a folder and those below it; closed receives those that may not be read."""

    def skip(error: OSError) -> None:
        closed.append(Path(error.filename))

    for parent, folders, names in os.walk(folder, onerror=skip):  # follows no links, so it ends
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in _EXTENSIONS:
                yield Path(parent, name)


def _read(source: _Source, name: str, limits: Limits) -> bytes:
    """The bytes of a file of allowed size. Raises Refused, and InputRejected for one of text."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if inspect.iscoroutinefunction(getattr(source, "read", None)):  # before one is made in vain
        raise InputRejected(
            f"{display_name(name)} is read with await. Pass the file in it, as the .file of an "
            "UploadFile."
        )
    try:
        if isinstance(source, Readable):
            return _read_open(source, limits)
        if source.is_dir():
            raise Refused("folder")
        if not source.is_file():  # a pipe or device could block for ever
            raise Refused("unreadable")
        with source.open("rb") as file:
            return _read_open(file, limits)
    except (TypeError, UnicodeDecodeError):  # what is read is no bytes, or fails to become text
        raise InputRejected(
            f'{display_name(name)} does not give bytes. Open it in binary mode: open(..., "rb").'
        ) from None
    except (OSError, ValueError) as error:  # ValueError: it has been closed
        raise Refused("unreadable") from error


def _read_open(file: Readable, limits: Limits) -> bytes:
    """All of an open file, wherever it stands; never more than the limit and one byte."""
    with suppress(AttributeError, OSError):  # what cannot go back is read from where it stands
        nbytes = _rewind(cast(BinaryIO, file))
        check_size(nbytes, limits)
    pieces: list[bytes] = []
    left = limits.max_file_bytes + 1
    # A read takes memory for all that it asks for; it may give less, as of a pipe.
    while left > 0 and (piece := file.read(min(left, _AT_ONCE))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _rewind(file: BinaryIO) -> int:
    """Go to the beginning of a file; returns its length in bytes."""
    file.seek(0, os.SEEK_END)
    nbytes = file.tell()
    file.seek(0)
    return nbytes
