"""F9, F10 and the PDF half of ingest: pages, labels, ranges, locks, sizes."""

from __future__ import annotations

import pytest
from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.sandbox import Decoder
from mrr.types import FailedFile, PageImage
from tests.pages.files import fill, locked_pdf, make_pdf

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = [fill(1, 0, 0), fill(0, 1, 0), fill(0, 0, 1)]


def middle(image: Image.Image) -> object:
    return image.getpixel((image.width // 2, image.height // 2))


def test_pages_come_in_order_at_144_dpi_and_are_counted_from_1(decoder: Decoder) -> None:
    pages = list(decoder.pages("dir/report.pdf", make_pdf(COLOURS)))
    assert [middle(page.image) for page in pages] == [RED, GREEN, BLUE]
    assert [page.page_num for page in pages] == [1, 2, 3]
    assert [page.label for page in pages] == [f"report.pdf p. {n}" for n in (1, 2, 3)]
    assert {page.source for page in pages} == {"report.pdf"}
    assert {page.image.size for page in pages} == {(200, 200)}


def test_an_empty_page_is_white_and_half_a_page_is_upright(decoder: Decoder) -> None:
    lower_half = b"1 0 0 rg 0 0 100 50 re f"
    empty, half = [page.image for page in decoder.pages("x", make_pdf([b"", lower_half]))]
    assert middle(empty) == (255, 255, 255)
    assert (half.getpixel((100, 20)), half.getpixel((100, 180))) == ((255, 255, 255), RED)
    (turned,) = decoder.pages("x", make_pdf([lower_half], page="/Rotate 90"))
    assert turned.image.getpixel((20, 100)) == RED


def test_own_page_labels_are_kept_beside_the_number(decoder: Decoder) -> None:
    labels = "/PageLabels<</Nums[0<</S/r>> 2<</S/D>> 3<</S/D/P(A-)>>]>>"
    pages = decoder.pages("report.pdf", make_pdf([*COLOURS, COLOURS[0]], catalog=labels))
    assert [page.label for page in pages] == [
        "report.pdf p. i (1)",
        "report.pdf p. ii (2)",
        "report.pdf p. 1 (3)",
        "report.pdf p. A-1 (4)",
    ]


def test_a_hostile_page_label_is_one_short_line(decoder: Decoder) -> None:
    label = "/PageLabels<</Nums[0<</P<FEFF202E000A0041" + "0042" * 300 + ">>>]>>"
    (page,) = decoder.pages("x.pdf", make_pdf([b""], catalog=label))
    assert page.label == "x.pdf p. A" + "B" * 19 + " (1)"


def test_annotations_and_filled_form_fields_are_drawn(decoder: Decoder) -> None:
    stamp = b"<</Type/XObject/Subtype/Form/BBox[0 0 40 40]/Length 24>>"
    stamp += b"stream\n0 0 1 rg 0 0 40 40 re f \nendstream"
    square = b"<</Type/Annot/Subtype/Stamp/Rect[10 10 50 50]/F 4/AP<</N 6 0 R>>>>"
    field = b"<</Type/Annot/Subtype/Widget/FT/Tx/T(n)/V(x)/Rect[60 60 100 100]/F 4/AP<</N 6 0 R>>>>"
    data = make_pdf(
        [b""],
        page="/Annots[5 0 R 7 0 R]",
        catalog="/AcroForm<</Fields[7 0 R]>>",
        extra=[square, stamp, field],
    )
    (page,) = decoder.pages("x.pdf", data)
    assert page.image.getpixel((60, 140)) == BLUE  # the annotation, lower left
    assert page.image.getpixel((160, 40)) != (255, 255, 255)  # the field, upper right


@pytest.mark.parametrize(
    ("page_range", "expected"),
    [
        ("1", [1]),
        ("2-3", [2, 3]),
        ("3,1", [1, 3]),
        (" 1 - 2 , 2", [1, 2]),
        ("2-999999999", [2, 3]),
        (None, [1, 2, 3]),
    ],
)
def test_a_page_range_chooses_pages(
    decoder: Decoder, page_range: str | None, expected: list[int]
) -> None:
    pages = decoder.pages("x.pdf", make_pdf(COLOURS), page_range)
    assert [page.page_num for page in pages] == expected


@pytest.mark.parametrize(
    ("page_range", "message"),
    [
        (3, "A page range is text, such as 1-3,7; this one is 3."),
        ("", '"" is not a page range. Write page numbers and ranges, such as 1-3,7.'),
        ("a-b", '"a-b" is not a page range'),
        ("1-", '"1-" is not a page range'),
        ("-2", '"-2" is not a page range'),
        ("1;2", '"1;2" is not a page range'),
        ("0-2", "The page range 0-2 runs backwards or starts at 0. Count pages from 1"),
        ("3-1", "The page range 3-1 runs backwards"),
        ("4", "x.pdf has 3 pages; page 4 was asked for. Choose pages up to 3."),
        ("1,4-5", "x.pdf has 3 pages; page 4 was asked for. Choose pages up to 3."),
    ],
)
def test_a_wrong_page_range_is_answered_with_a_sentence(
    decoder: Decoder, page_range: str, message: str
) -> None:
    with pytest.raises(InputRejected) as caught:
        list(decoder.pages("x.pdf", make_pdf(COLOURS), page_range))
    assert str(caught.value).startswith(message)


def test_pages_are_counted_without_being_drawn(decoder: Decoder) -> None:
    assert decoder.count_pages("x.pdf", make_pdf(COLOURS)) == 3
    assert decoder.count_pages("x.pdf", make_pdf(COLOURS), "1,3") == 2
    many = decoder.count_pages("x.pdf", make_pdf([b""] * 5000))
    assert many == decoder.limits.max_pdf_pages


def test_a_pdf_locked_by_its_user_password_says_so(decoder: Decoder) -> None:
    with pytest.raises(InputRejected) as caught:
        list(decoder.pages("x.pdf", locked_pdf(b"secret", b"owner")))
    assert str(caught.value) == (
        "x.pdf is locked with a password. Remove the password and add it again."
    )


def test_a_pdf_with_an_owner_password_only_opens_as_it_does_everywhere(decoder: Decoder) -> None:
    (page,) = decoder.pages("x.pdf", locked_pdf(b"", b"owner"))
    assert middle(page.image) == RED


@pytest.mark.parametrize(
    "data", [b"%PDF-1.7\n", b"%PDF-1.7\njunk" * 50, make_pdf(COLOURS)[:200], b"%PDF-\0" * 9]
)
def test_junk_and_truncated_pdfs_are_refused(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(InputRejected, match=r"^x\.pdf is damaged or incomplete\."):
        list(decoder.pages("x.pdf", data))


def test_a_pdf_without_pages_says_so_whatever_went_before(decoder: Decoder) -> None:
    with pytest.raises(InputRejected, match="is locked"):
        list(decoder.pages("x.pdf", locked_pdf(b"secret", b"owner")))
    with pytest.raises(InputRejected, match=r"^x\.pdf has no pages\."):
        list(decoder.pages("x.pdf", make_pdf([])))


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ("0 0 612 792", (1224, 1584)),
        ("0 0 14400 14400", (2000, 2000)),
        ("0 0 200000 200000", (2000, 2000)),
        ("0 0 14400 100", (23994, 167)),
        ("0 0 1 1", (28, 28)),
        ("100 100 0 0", (200, 200)),
    ],
)
def test_pixels_are_capped_by_scale_and_not_by_the_size_of_the_page(
    decoder: Decoder, box: str, size: tuple[int, int]
) -> None:
    (page,) = decoder.pages("x.pdf", make_pdf([b""], box=box))
    width, height = page.image.size
    assert width * height <= 4_000_000
    assert abs(width - size[0]) <= size[0] // 200
    assert abs(height - size[1]) <= 1


def test_a_page_that_is_a_thread_is_refused_and_the_others_are_read(decoder: Decoder) -> None:
    data = make_pdf(COLOURS).replace(b"[0 0 100 100]/Contents 7", b"[0 0 1 30000]/Contents 7")
    first, refused, last = decoder.pages("x.pdf", data)
    assert isinstance(first, PageImage) and middle(first.image) == RED
    assert isinstance(refused, FailedFile) and refused.file == "x.pdf"
    assert refused.reason.startswith("Page 2 of x.pdf is 1×30000; the longer side may be")
    assert isinstance(last, PageImage) and (last.page_num, middle(last.image)) == (3, BLUE)


def test_of_too_many_pages_the_first_are_read_and_the_user_is_told_about_the_rest() -> None:
    with Decoder(Limits(max_pdf_pages=3)) as decoder:
        pages = decoder.pages("x.pdf", make_pdf([b""] * 5000))
        assert [next(pages).page_num for _ in range(3)] == [1, 2, 3]
        with pytest.raises(InputRejected) as caught:
            next(pages)
        assert str(caught.value) == (
            "x.pdf: 5,000 pages were asked for; the limit is 3 a file. The first 3 were read. "
            "Add others with a page range, such as 4-6."
        )
        data = make_pdf([b""] * 5000)
        assert [p.page_num for p in decoder.pages("x.pdf", data, "4998-5000")] == [4998, 4999, 5000]
