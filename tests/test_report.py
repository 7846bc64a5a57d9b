"""Contact sheets and turntables as people get them, read back by Pillow."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zero123cli.errors import UnavailableError, Zero123Error
from zero123cli.report import (
    FRAME_TIME,
    MARGIN,
    best_columns,
    contact_sheet,
    encode_animation,
    encode_png,
    on_white,
)

ANGLES = [f"{45 * k}° +0" for k in range(8)]


def flat(colour: tuple[int, ...], width: int = 64, height: int = 64) -> np.ndarray:
    return np.full((height, width, len(colour)), colour, np.uint8)


def rainbow(count: int, side: int = 64) -> list[np.ndarray]:
    """Pictures of colours that no palette mixes up."""
    return [flat((30 * k, 255 - 30 * k, 120 + 15 * k), side, side) for k in range(count)]


# Sheets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "columns"), [(1, 0), (2, 0), (5, 0), (8, 0), (8, 4), (12, 3), (7, 2)])
@pytest.mark.parametrize("side", [32, 256])
def test_every_picture_of_a_sheet_is_there_unscaled_and_in_order(count: int, columns: int, side: int) -> None:
    pictures = rainbow(count, side)
    sheet = np.asarray(contact_sheet(pictures, [str(k) for k in range(count)], columns=columns))
    columns = columns or best_columns(count)
    rows = -(-count // columns)
    height = (len(sheet) - MARGIN) / rows
    assert sheet.shape[1] == columns * (side + MARGIN) + MARGIN
    assert height > side + 2 * MARGIN, "room for the label"
    for k, picture in enumerate(pictures):
        left, top = MARGIN + k % columns * (side + MARGIN), round(MARGIN + k // columns * height)
        assert np.array_equal(sheet[top : top + side, left : left + side], picture)
        label = sheet[top + side : top + int(height) - 1, left : left + side].min(2)
        assert label.min() < 100, f"nothing is written under picture {k}"
        assert (sheet[:, left - MARGIN : left] > 200).all() or side == 32, "labels keep to their picture"


def test_labels_are_drawn_letter_by_letter() -> None:
    picture = flat((255, 255, 255))
    sheets = [np.asarray(contact_sheet([picture], [label])) for label in ("", "90° +0", "90° +1", "270° +0")]
    assert sheets[0].min() == 255, "no label, nothing but white"
    assert all(not np.array_equal(sheets[a], sheets[b]) for a in range(4) for b in range(a))
    assert len({sheet.shape for sheet in sheets}) == 1


def test_as_many_labels_as_pictures() -> None:
    with pytest.raises(ValueError):
        contact_sheet(rainbow(2), ["one"])


@pytest.mark.parametrize("count", range(1, 41))
def test_a_sheet_is_about_square_and_rather_wider_than_high(count: int) -> None:
    columns = best_columns(count)
    rows = -(-count // columns)
    assert 1 <= columns <= count
    assert columns >= rows - 1 and columns <= rows + 5
    assert columns * rows - count < columns, "no empty row"
    if count in (4, 6, 8, 9, 12, 16, 20, 25):
        assert columns * rows == count, "no holes"


def test_what_is_transparent_is_white() -> None:
    assert np.asarray(on_white(flat((200, 0, 0, 0)))).min() == 255
    assert np.array_equal(np.asarray(on_white(flat((200, 10, 0, 255)))), flat((200, 10, 0)))
    half = np.asarray(on_white(flat((0, 0, 0, 128))))
    assert np.abs(half.astype(int) - 127).max() <= 1
    assert on_white(flat((1, 2, 3))).mode == "RGB"


@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_holds_the_pixels_and_nothing_else(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    page = encode_png(pixels)
    assert page == encode_png(pixels.copy()), "the same bytes for the same pixels"
    with Image.open(io.BytesIO(page)) as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), pixels)


# Turntables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_turntable_has_every_frame_and_turns_for_ever(suffix: str, count: int) -> None:
    pictures = rainbow(count)
    with Image.open(io.BytesIO(encode_animation(pictures, suffix))) as image:
        assert image.format == suffix[1:].upper() and image.size == (64, 64)
        assert getattr(image, "n_frames", 1) == count
        if count > 1:
            assert image.info["loop"] == 0
        for k, picture in enumerate(pictures):
            image.seek(k)
            image.load()
            if count > 1:
                assert image.info["duration"] == FRAME_TIME
            seen = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(seen - picture).max() <= 12, f"frame {k}"


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_frames_that_look_alike_keep_their_time(suffix: str) -> None:
    # Encoders join equal frames: what counts is how long they are shown.
    pictures = [flat((200, 0, 0))] * 3 + [flat((0, 0, 200))] * 2
    shown = 0
    with Image.open(io.BytesIO(encode_animation(pictures, suffix))) as image:
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            image.load()
            shown += image.info["duration"]
    assert shown == 5 * FRAME_TIME


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_object_without_ground_turns_on_white(suffix: str) -> None:
    pictures = [flat((0, 0, 0, 0)), flat((0, 0, 0, 255))]
    with Image.open(io.BytesIO(encode_animation(pictures, suffix))) as image:
        assert np.asarray(image.convert("RGB")).min() > 245
        image.seek(1)
        assert np.asarray(image.convert("RGB")).max() < 10


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder in which programs are looked for, besides the system's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(folder: Path, script: str) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_a_film_without_ffmpeg_is_refused_with_what_can_be_had(only: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        encode_animation(rainbow(2), ".mp4")
    assert caught.value.exit_code == 69
    assert "ffmpeg" in str(caught.value) and ".gif" in caught.value.remedy


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")
@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 63)], ids=["even", "odd"])
def test_a_film_is_what_ffmpeg_makes_of_the_frames(only: Path, tmp_path: Path, width: int, height: int) -> None:
    put(only, f'echo "$@" > {tmp_path}/told; cat > {tmp_path}/given; printf "film\\000\\377"')
    pictures = [flat((30 * k, 0, 255 - 30 * k), width, height) for k in range(4)]
    assert encode_animation(pictures, ".mp4") == b"film\0\xff"
    assert (tmp_path / "given").read_bytes() == b"".join(
        flat((30 * k, 0, 255 - 30 * k)[:3], 64, 64 if height == 64 else 62).tobytes() for k in range(4)
    )
    told = (tmp_path / "told").read_text()
    assert f"-s 64x{height - height % 2}" in told and "rgb24" in told and "yuv420p" in told
    rate = float(told.split("-r ")[1].split()[0])
    assert rate == pytest.approx(1000 / FRAME_TIME, rel=1e-3)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")
@pytest.mark.parametrize(
    "script",
    [
        "cat > /dev/null; echo first >&2; echo 'no such encoder' >&2; exit 3",
        "exec <&-; echo 'no such encoder' >&2; exit 1",
    ],
    ids=["at the end", "at once"],
)
def test_what_ffmpeg_complains_of_is_passed_on(only: Path, script: str) -> None:
    put(only, script)
    with pytest.raises(Zero123Error) as caught:
        encode_animation(rainbow(8), ".mp4")
    assert "no such encoder" in str(caught.value)
    assert isinstance(caught.value, UnavailableError)
