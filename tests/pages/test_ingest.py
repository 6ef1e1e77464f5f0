"""Files and folders in, pages and refusals out: one bad file never costs another."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.ingest import contents, expand, read_bytes, read_pages, several
from mrr.pages.sandbox import Decoder
from mrr.types import FailedFile, PageImage
from tests.pages.files import encoded, fill, make_pdf, photo

PNG = encoded(photo(), "PNG")


def test_a_folder_is_searched_and_sorted_and_a_named_file_is_kept_as_it_is(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.pdf", "sub/c.jpeg", "sub/d.txt", ".hidden.png", ".git/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    first, second = ("a.pdf", tmp_path / "a.pdf"), ("b.PNG", tmp_path / "b.PNG")
    third = ("sub › c.jpeg", tmp_path / "sub" / "c.jpeg")
    text = tmp_path / "sub" / "d.txt"
    assert expand([tmp_path]) == ([first, second, third], [])
    found, _ = expand([str(text), tmp_path, first[1]])
    assert found == [("d.txt", text), first, second, third]


def test_a_link_is_called_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(PNG)
    link = tmp_path / "report.png"
    link.symlink_to(tmp_path / "blob")
    assert expand([link])[0] == contents(link)[0] == [("report.png", link)]


def test_files_of_one_name_in_several_folders_are_told_apart(
    decoder: Decoder, tmp_path: Path
) -> None:
    for folder, content in (("2024", PNG), ("2025", b"no picture")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "report.png").write_bytes(content)
    good, bad = read_pages(decoder, expand([tmp_path])[0])
    assert isinstance(good, PageImage) and good.label == "2024 › report.png"
    assert isinstance(bad, FailedFile) and bad.file == "2025 › report.png"
    assert bad.reason.startswith("2025 › report.png ")


def test_a_missing_path_and_an_empty_folder_are_refused_by_name(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "report.pdf"
    reason = "report.pdf does not exist. Check its name."
    assert expand([gone]) == contents(gone) == ([], [FailedFile("report.pdf", reason)])
    empty = tmp_path / "empty"
    empty.mkdir()
    found, (failed,) = expand([empty])
    assert not found and failed.file == "empty"
    assert failed.reason.startswith("The folder empty holds no PNG, JPEG, WebP, GIF")
    found, (failed,) = expand([tmp_path / ("long" * 100)])
    assert not found and "does not exist" in failed.reason


def test_what_is_missing_does_not_keep_the_other_files_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    found, failed = expand([tmp_path / "gone.pdf", tmp_path / "a.png"])
    assert found == [("a.png", tmp_path / "a.png")]
    assert [(one.file, one.reason) for one in failed] == [
        ("gone.pdf", "gone.pdf does not exist. Check its name.")
    ]


def test_a_folder_that_may_not_be_read_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def locked(folder: str) -> object:  # as for anybody but root
        if Path(folder).name == "secret":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    refused = [FailedFile("secret", "The folder secret may not be read.")]
    assert expand([tmp_path]) == ([("a.png", tmp_path / "a.png")], refused)
    assert contents(tmp_path)[1] == refused
    assert expand([tmp_path / "secret"]) == ([], refused)


def test_a_link_to_a_parent_folder_does_not_go_round(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert expand([tmp_path]) == ([("a.png", tmp_path / "a.png")], [])


def test_bad_files_are_named_and_the_others_go_on(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "disk.pdf"
    path.write_bytes(make_pdf([fill(1, 0, 0)] * 2))
    files = [
        ("a.png", PNG),
        ("bad.png", b"nonsense"),
        ("dir/disk.pdf", path),
        ("gone.png", tmp_path / "gone.png"),
        ("folder.png", tmp_path),
        ("z.png", PNG),
    ]
    outcomes = list(read_pages(decoder, files))
    assert [page.label for page in outcomes if isinstance(page, PageImage)] == [
        "a.png",
        "disk.pdf p. 1",
        "disk.pdf p. 2",
        "z.png",
    ]
    failed = [failure for failure in outcomes if isinstance(failure, FailedFile)]
    assert [failure.file for failure in failed] == ["bad.png", "gone.png", "folder.png"]
    assert failed[1].reason.startswith("gone.png could not be opened. Check that it is a readable")
    assert failed[2].reason.startswith("folder.png is a folder; one file is wanted here.")
    assert str(tmp_path) not in repr(failed)


def test_a_pdf_with_a_bad_page_gives_all_the_others(decoder: Decoder) -> None:
    thread = make_pdf([b""] * 4).replace(b"[0 0 100 100]/Contents 9", b"[0 0 1 30000]/Contents 9")
    outcomes = list(read_pages(decoder, [("x.pdf", thread)]))
    assert [o.page_num for o in outcomes if isinstance(o, PageImage)] == [1, 2, 4]
    failed = outcomes[2]
    assert isinstance(failed, FailedFile) and failed.file == "x.pdf"
    assert failed.reason.startswith("Page 3 of x.pdf is 1×30000")


def test_a_page_range_is_for_pdfs_and_an_image_is_always_taken(decoder: Decoder) -> None:
    files = [("x.pdf", make_pdf([b""] * 3)), ("a.png", PNG), ("y.pdf", make_pdf([b""]))]
    outcomes = list(read_pages(decoder, files, page_range="2-3"))
    labels = [o.label if isinstance(o, PageImage) else o.reason for o in outcomes]
    assert labels == [
        "x.pdf p. 2",
        "x.pdf p. 3",
        "a.png",
        "y.pdf has 1 page; page 2 was asked for. Choose pages up to 1.",
    ]


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    sparse = tmp_path / "big.png"
    with sparse.open("wb") as file:
        file.truncate(8 * 2**30)
    with Decoder() as decoder:
        (failed,) = read_pages(decoder, [("big.png", sparse)])
    assert isinstance(failed, FailedFile)
    assert failed.reason.startswith("big.png is 8192 MB; the limit is 20 MB.")


def test_a_limit_beyond_all_memory_takes_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for limit in (2**50, 2**70):  # bytes: as whoever wants none may write it
        with Decoder(Limits(max_file_bytes=limit)) as decoder:
            assert labels(decoder, tmp_path / "a.png") == ["a.png"]


def test_a_file_of_several_reads_is_whole_and_held_to_the_limit(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr.pages.ingest._AT_ONCE", 7)
    assert labels(decoder, ("a.png", io.BytesIO(PNG))) == ["a.png"]
    reads, writes = os.pipe()  # whose length is not known before
    with open(writes, "wb") as out, open(reads, "rb") as file:
        out.write(PNG[:30])
        out.flush()
        assert len(read_bytes(file, "a.png", Limits(max_file_bytes=20))) == 21


def test_a_pipe_does_not_block_the_others(decoder: Decoder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    failed, page = read_pages(decoder, [("pipe.png", tmp_path / "pipe.png"), ("a.png", PNG)])
    assert isinstance(failed, FailedFile)
    assert isinstance(page, PageImage)


def test_files_are_read_one_at_a_time_as_pages_are_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []

    def files() -> object:
        for name in ("a.png", "b.png"):
            asked.append(name)
            yield name, PNG

    with Decoder(Limits()) as decoder:
        pages = read_pages(decoder, files())  # type: ignore[arg-type]
        next(pages)
        assert asked == ["a.png"]


def test_files_are_taken_in_every_form_that_a_caller_may_hold_them_in(tmp_path: Path) -> None:
    path, picture = tmp_path / "a.png", photo()
    path.write_bytes(PNG)
    assert contents(str(path)) == contents(path) == contents(tmp_path) == ([("a.png", path)], [])
    assert contents(PNG) == ([("file", PNG)], [])
    assert contents(picture) == ([("image", picture)], [])
    assert contents(("cat.png", picture)) == ([("cat.png", picture)], [])
    assert contents(("cat.png", PNG)) == ([("cat.png", PNG)], [])
    assert contents(("cat.png", path)) == contents(("cat.png", str(path))) == (
        [("cat.png", path)], []
    )  # fmt: skip
    for empty in ("", ("cat.png", "")):
        with pytest.raises(InputRejected, match="The name of a file is empty"):
            contents(empty)
    with pytest.raises(InputRejected, match="cannot be read from ndarray"):
        contents(np.zeros((9, 9, 3)))  # type: ignore[arg-type]


def test_a_tuple_is_one_file_only_where_it_is_a_name_and_its_content() -> None:
    for in_hand in (PNG, bytearray(PNG), io.BytesIO(PNG), photo()):
        assert several(("a.png", in_hand)) == [("a.png", in_hand)]
    for paths in (("a.png", "b.png"), ("a.png", Path("b.png")), (Path("a.png"), Path("b.png"))):
        assert several(paths) == paths
    assert several(PNG) == [PNG]
    assert several([PNG, "a.png"]) == [PNG, "a.png"]


def test_a_picture_in_a_data_url_is_the_picture(decoder: Decoder) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert contents(url) == ([("file", PNG)], [])
    assert contents(("cat.png", url)) == ([("cat.png", PNG)], [])
    assert several(url) == [url] and several(("cat.png", url)) == [("cat.png", url)]
    assert labels(decoder, url, ("cat.png", url)) == ["file", "cat.png"]
    for broken in ("data:image/png,raw", f"{url}?"):
        with pytest.raises(InputRejected, match=r"^The file is a data URL that is not base64; w"):
            contents(broken)
        with pytest.raises(InputRejected, match=r"^cat\.png is a data URL that is not base64; w"):
            contents(("cat.png", broken))


def labels(decoder: Decoder, *files: object) -> list[str]:
    """What the pages of files are called, or why they were refused."""
    named = [one for file in several(files) for one in contents(file)[0]]  # type: ignore[arg-type]
    outcomes = read_pages(decoder, named)
    return [o.label if isinstance(o, PageImage) else o.reason for o in outcomes]


def test_bytes_are_taken_in_every_form(decoder: Decoder) -> None:
    assert labels(decoder, PNG, bytearray(PNG), memoryview(PNG)) == ["file"] * 3


def test_an_open_file_is_one_file_and_is_read_from_its_beginning(
    decoder: Decoder, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    written = io.BytesIO()
    written.write(PNG)  # and stands at its end
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        raw.read(5)
        assert several(file) == [file]
        assert labels(decoder, written, file, raw, file) == ["file", "a.png", "a.png", "a.png"]


def test_a_pipe_is_read_to_its_end_from_where_it_stands(decoder: Decoder) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as pipe, open(writing, "wb", buffering=0) as other:
        for start in range(0, len(PNG), 1000):
            other.write(PNG[start : start + 1000])
        other.close()
        assert labels(decoder, pipe) == ["file"]


def test_an_open_file_that_gives_no_page_is_refused_by_name(
    decoder: Decoder, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    closed = path.open("rb")
    closed.close()
    with path.open(encoding="utf-8") as text:
        of_text, of_letters, of_closed, of_nothing = labels(
            decoder, text, io.StringIO("letters"), closed, io.BytesIO()
        )
    assert of_text == 'a.png does not give bytes. Open it in binary mode: open(..., "rb").'
    assert of_letters == 'file does not give bytes. Open it in binary mode: open(..., "rb").'
    assert of_closed.startswith("a.png could not be opened.")
    assert of_nothing.startswith("file is empty (0 bytes).")


def test_a_file_that_is_read_with_await_is_told_to_pass_the_one_in_it(
    decoder: Decoder, recwarn: pytest.WarningsRecorder
) -> None:
    class Upload:  # as FastAPI's UploadFile
        file = io.BytesIO(PNG)

        async def seek(self, offset: int) -> None: ...

        async def read(self, size: int = -1) -> bytes:
            return self.file.read(size)

    upload = Upload()
    (reason,) = labels(decoder, upload)
    assert reason == "file is read with await. Pass the file in it, as the .file of an UploadFile."
    assert labels(decoder, upload.file) == ["file"]
    assert not recwarn.list, "it was asked to read, and never awaited"


def test_an_upload_that_came_without_a_name_gets_one(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        unnamed = [(None, io.BytesIO(PNG)), (None, PNG), (None, photo()), (None, file)]
        assert labels(decoder, *unnamed) == ["file", "file", "image", "a.png"]
        assert several(unnamed[0]) == [unnamed[0]]
    with pytest.raises(InputRejected, match="A page cannot be read from tuple"):
        contents((None, path))  # type: ignore[arg-type]


def test_an_open_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    sparse = tmp_path / "big.png"
    with sparse.open("wb") as file:
        file.truncate(8 * 2**30)
    with Decoder() as decoder, sparse.open("rb") as file:
        (reason,) = labels(decoder, file)
        assert file.tell() == 0
    assert reason.startswith("big.png is 8192 MB; the limit is 20 MB.")


def test_a_picture_in_memory_is_held_to_the_limit_of_files(decoder: Decoder) -> None:
    large = Image.new("L", (8000, 5001))
    (failed,) = read_pages(decoder, [("scan", large)])
    assert isinstance(failed, FailedFile)
    assert failed.reason.startswith("scan is 8000×5001 (40.01 MP); the limit is 40 MP.")


def test_a_picture_that_pillow_gives_up_on_does_not_keep_the_others_out(decoder: Decoder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(noise), "PNG"))
    data[data.rindex(b"IDAT") + 1] = 0  # the pixels go on in a chunk that is none
    assert data.count(b"IDAT") > 0, "one chunk only"
    closed, broken = Image.open(io.BytesIO(PNG)), Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(SyntaxError):
        broken.copy()
    broken = Image.open(io.BytesIO(data))
    outcomes = list(read_pages(decoder, [("closed", closed), ("broken", broken), ("b.png", PNG)]))
    assert [type(outcome) for outcome in outcomes] == [FailedFile, FailedFile, PageImage]


def test_an_array_is_one_thing_that_is_refused_and_not_one_a_row() -> None:
    (one,) = several(np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(InputRejected, match="A page cannot be read from ndarray"):
        contents(one)


def test_a_url_is_told_that_none_is_fetched_and_a_home_folder_is_found(
    tmp_path: Path, monkeypatch
) -> None:
    _, (failed,) = expand(["https://example.org/x.pdf"])
    assert failed.reason == "x.pdf is a URL, and none is fetched. Download it and pass its path."
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.pdf").touch()
    assert expand(["~/x.pdf"]) == ([("x.pdf", tmp_path / "x.pdf")], [])
