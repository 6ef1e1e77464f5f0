import random
from dataclasses import replace

import numpy as np
import pytest

from mrr.train import fonts, labels, layout, render
from mrr.train.data import PageSource, WindowBatches
from mrr.train.stages import Workshop
from mrr.train.text import TextSampler, load
from mrr.train.tokens import WordPieces


def _sheet(source: PageSource, seed: int) -> layout.PageLayout:
    sampler = TextSampler(source.corpus, random.Random(seed))
    return layout.compose(*source.size, source.style_at(0), sampler)


def test_the_same_seed_draws_the_same_page_and_another_seed_another(source: PageSource) -> None:
    first, again, other = (source.page(seed) for seed in ("a", "a", "b"))
    assert np.array_equal(first.pixels, again.pixels) and first.words == again.words
    assert first.words != other.words


def test_every_character_box_of_a_plain_page_lies_on_ink(source: PageSource) -> None:
    face = fonts.find(["liberationsans-regular"])[0]
    sheet = layout.PageLayout(512, 256, 255, 1.62)
    for line, text in enumerate(("Reading", "quarterly", "boxes")):
        sheet.words.append(layout.Word(text, face, 15.0, 20.3 + 90 * line, 60.6, 0))
    page = render.draw(sheet, random.Random(0))
    for (x0, x1), (y0, y1) in zip(page.char_x, page.char_y, strict=True):
        glyph = page.pixels[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1]
        assert glyph.min() < 140, (x0, x1, y0, y1)
    outside = page.pixels[:, int(page.char_x.max()) + 3 :]
    assert outside.min() == 255


def test_an_undrawn_page_has_the_same_boxes_as_the_drawn_one(source: PageSource) -> None:
    sheet = _sheet(source, 3)
    drawn, blank = render.draw(sheet, random.Random(0)), render.blank(sheet)
    assert np.array_equal(drawn.char_x, blank.char_x) and drawn.words == blank.words
    assert blank.pixels.std() == 0


def test_pieces_are_labelled_in_the_cell_where_they_are_printed(shop: Workshop) -> None:
    face = fonts.find(["dejavusans.ttf"])[0]
    sheet = layout.PageLayout(512, 256, 255, 1.0)
    # Cell (row 1, column 9): the second window, its column 1.
    sheet.words.append(layout.Word("a", face, 15.0, 9 * 32 + 12, 32 + 20, 0))
    pieces = WordPieces(shop.tokenizer)
    cut = labels.label(labels.mark(render.draw(sheet, random.Random(0)), pieces))
    (piece, _, _), *rest = pieces("a")
    assert not rest
    assert cut.pieces.tolist() == [[64 + 8 + 1, piece]]
    assert cut.windows.shape == (2, 256, 256)


def test_the_character_grid_names_the_letters_where_they_stand(source: PageSource) -> None:
    face = fonts.find(["liberationsans-regular"])[0]
    sheet = layout.PageLayout(256, 256, 255, 1.0)
    sheet.words.append(layout.Word("mW", face, 32.0, 0.0, 32.0, 0))
    drawn = render.draw(sheet, random.Random(0))
    cut = labels.label(labels.mark(drawn, WordPieces(source.tokenizer)))
    # Patch (1, 0) is third in the first cell of merge-block order; it lies within the m.
    assert set(cut.characters[0, 2].tolist()) == {labels.character_class("m")}
    assert labels.character_class("É") == labels.character_class("e")
    assert set(cut.characters[0, 100].tolist()) == {0}


def test_batches_do_not_depend_on_where_the_stream_is_entered(source: PageSource) -> None:
    whole = list(WindowBatches(source, 1, "s", 0, 3))
    entered = next(iter(WindowBatches(source, 1, "s", 2, 3)))
    assert np.array_equal(whole[2].windows, entered.windows)
    assert np.array_equal(whole[2].pieces, entered.pieces)
    assert not np.array_equal(whole[1].windows, entered.windows)


def test_a_page_that_is_used_again_is_cut_elsewhere_and_labelled_there(source: PageSource) -> None:
    large = replace(source, size=(768, 768))
    first, second = WindowBatches(large, 2, "s", 0, 2, reuse=2)
    assert first.windows.shape == second.windows.shape == (8, 256, 256)
    assert not np.array_equal(first.windows, second.windows)
    drawn = labels.mark(large.page("s/0/0", 0), WordPieces(source.tokenizer))
    left, top = 37, 201
    cut = drawn.cut(left, top, 512, 512)
    assert np.array_equal(cut.pixels, drawn.pixels[top : top + 512, left : left + 512])
    x, y = drawn.piece_x.mean(1) - left, drawn.piece_y - top
    inside = (x >= 0) & (x < 512) & (y >= 0) & (y < 512)
    row, column = (y[inside] // 32).astype(int), (x[inside] // 32).astype(int)
    cell = (row // 8 * 2 + column // 8) * 64 + row % 8 * 8 + column % 8
    expected = np.stack([cell, drawn.pieces[inside]], 1).tolist()
    assert len(expected) > 20 and labels.label(cut).pieces.tolist() == expected


def test_validation_faces_and_paragraphs_are_kept_out_of_training(shop: Workshop) -> None:
    held = [face for face in fonts.find(fonts.LATIN) if fonts.is_held_out(face)]
    assert not set(held) & set(fonts.find(fonts.COMMON))
    train, validation = (load(shop.corpus_dir, part) for part in ("train", "validation"))
    assert not set(train.paragraphs) & set(validation.paragraphs)


def test_a_style_without_fonts_is_refused() -> None:
    with pytest.raises(ValueError, match="fonts"):
        layout.Style(())
