"""Photos: every kind that is read, every limit, every refusal.

Most pictures are made here; the odd images of other projects come from shared/ where that folder is present.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from zero123cli import photos
from zero123cli.artifacts import Photo, Picture
from zero123cli.errors import (
    MissingInputError,
    NothingFoundError,
    OutOfMemoryError,
    PhotoError,
    UnavailableError,
    Zero123Error,
)
from zero123cli.watch import Caution

ODD = Path(__file__).resolve().parents[2] / "shared" / "data" / "odd-images"
SIDE = 32

# A slow obvious reference for each orientation: result pixel (y, x) of an upright picture of the stored one.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


def paint(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    """A picture that no turn or flip leaves as it is."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256, 255 - x - y], -1)[..., :channels]
    return np.ascontiguousarray(picture.astype(np.uint8))


def save(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def build_png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand; `rows` without the filter bytes."""
    step = len(rows) // height
    raw = b"".join(b"\0" + rows[y * step : (y + 1) * step] for y in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def reseal(png: bytearray) -> bytes:
    """An altered PNG with checksums that fit again, as far as its chunks can be followed."""
    start = 8
    while start + 12 <= len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        png[end - 4 : end] = struct.pack(">I", zlib.crc32(png[start + 4 : end - 4]))
        start = end
    return bytes(png)


def build_profile(space: bytes, gamma: float, order: str = "rgb") -> bytes:
    """An ICC 2.1 display profile: sRGB's primaries in the given order, a pure gamma; or a grey one."""
    columns = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(83),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
    }
    tags[b"wtpt"] = xyz((0.9642, 1.0, 0.8249))
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, source in zip("rgb", order, strict=True):
            tags[name.encode() + b"XYZ"] = xyz(columns[source])
            tags[name.encode() + b"TRC"] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    whole = struct.pack(">I", len(tags)) + table + body
    illuminant = struct.pack(">iii", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s12x4s28x", 128 + len(whole), b"lcms", 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    return (header + illuminant).ljust(128, b"\0") + whole


def decode(data: bytes, name: str = "photo") -> Picture:
    return photos.decode(Photo(name, data))


def decode_with_cautions(data: bytes) -> tuple[Picture, list[str]]:
    cautions: list[str] = []
    picture = photos.decode(Photo("photo", data), lambda message: cautions.append(message.code))
    return picture, cautions


def colours(data: bytes) -> np.ndarray:
    return decode(data).rgba[..., :3]


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def flat(*values: int) -> np.ndarray:
    return np.full((SIDE, SIDE, len(values)), values, np.uint8)


# Reading


def test_a_file_is_read_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a photo.png"
    path.write_bytes(b"any bytes \0\xff")
    assert photos.read(path) == Photo(str(path), b"any bytes \0\xff")
    assert photos.read(str(path)).data == path.read_bytes()


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert photos.read("-", BytesIO(b"bytes")) == Photo("stdin", b"bytes")
    assert photos.read(Path("-"), BytesIO(b"bytes")).name == "stdin"
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": BytesIO(b"more")}))
    assert photos.read("-").data == b"more"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(MissingInputError, match="closed"):
        photos.read("-")


def test_an_empty_photo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for read_it in (
        lambda: photos.read(tmp_path / "empty"),
        lambda: photos.read("-", BytesIO()),
        lambda: decode(b""),
    ):
        with pytest.raises(PhotoError, match="empty"):
            read_it()


def test_more_bytes_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_BYTES", 1000)
    path = tmp_path / "photo"
    path.write_bytes(bytes(1000))
    assert len(photos.read(path).data) == 1000
    path.write_bytes(bytes(1001))
    with pytest.raises(PhotoError, match="larger than"):
        photos.read(path)
    with open("/dev/zero", "rb") as endless, pytest.raises(PhotoError, match="larger than"):
        photos.read("-", endless)


def test_a_sparse_terabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(PhotoError, match="larger than 64 MB"):
        photos.read(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    began, before = time.monotonic(), len(os.listdir("/proc/self/fd"))
    for path, word in {
        tmp_path / "fifo": "named pipe",
        Path("/dev/zero"): "device",
        tmp_path: "folder",
        tmp_path / "dangling": "no such file",
        tmp_path / "loop": "symbolic links",
        tmp_path / "absent": "no such file",
        Path("with\0nul"): "not a path",
        Path("n" * 300): "too long",
    }.items():
        with pytest.raises(MissingInputError, match=word):
            photos.read(path)
    assert time.monotonic() - began < 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path, user = tmp_path / "secret", os.geteuid()
    path.write_bytes(b"x")
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)  # root reads every file
    try:
        with pytest.raises(MissingInputError, match="permission denied"):
            photos.read(path)
    finally:
        os.seteuid(user)


def test_a_hostile_name_is_shown_escaped(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\x1b[31m\n\xc3\xa9.png")
    path.write_bytes(b"x")
    assert photos.read(path).name == str(tmp_path) + "/\\udcff\\x1b[31m\\n\u00e9.png"


# Kinds


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_lossless_kinds_are_read_pixel_for_pixel(kind: str) -> None:
    picture = Image.fromarray(paint()).quantize(64).convert("RGB")
    data = save(
        picture.quantize(64) if kind == "GIF" else picture, kind, **{"lossless": True} if kind == "WEBP" else {}
    )
    result = decode(data)
    assert np.array_equal(result.rgba[..., :3], np.asarray(picture))
    assert result.rgba.dtype == np.uint8 and result.rgba.flags.c_contiguous and result.rgba.flags.writeable
    assert not result.has_alpha and (result.rgba[..., 3] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "WEBP"])
def test_lossy_kinds_are_read(kind: str) -> None:
    y, x = np.mgrid[:48, :64]
    smooth = np.stack([x * 4, y * 5, 128 + x - y], -1).astype(np.uint8)
    result = decode(save(smooth, kind, quality=95))
    assert np.abs(result.rgba[..., :3].astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_is_read(compression: str) -> None:
    assert np.array_equal(colours(save(paint(), "TIFF", compression=compression)), paint())


def test_a_multi_picture_jpeg_is_a_jpeg_without_caution() -> None:
    one, other = Image.fromarray(paint()), Image.fromarray(255 - paint())
    data = save(one, "MPO", save_all=True, append_images=[other], quality=95)
    picture, cautions = decode_with_cautions(data)
    assert picture.rgba.shape == (40, 60, 4) and cautions == []
    assert difference(picture.rgba[..., :3], np.asarray(Image.open(BytesIO(data)))) == 0


def test_the_name_says_nothing_about_the_kind() -> None:
    for name in ("photo.jpg", "photo.pdf", "photo"):
        assert np.array_equal(decode(save(paint(), "PNG"), name).rgba[..., :3], paint())


def test_nothing_but_the_sniffed_decoder_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    open_image = Image.open

    def spy(file: object, **options: object) -> Image.Image:
        tried.append(options["formats"])
        return open_image(file, **options)

    monkeypatch.setattr(Image, "open", spy)
    monkeypatch.setattr(subprocess, "Popen", None)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        decode(save(Image.fromarray(paint()), kind))
        assert tried.pop() == [kind]
    assert tried == []


def test_heic_without_its_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    for brand in (b"heic\0\0\0\0mif1", b"mif1\0\0\0\0heic"):
        with pytest.raises(UnavailableError) as caught:
            decode(struct.pack(">I4s12s", 20, b"ftyp", brand))
        assert caught.value.exit_code == 69 and 'pip install "zero123cli[heic]"' in str(caught.value)


NOT_PHOTOS = {
    "HTML": b"\n<!DOCTYPE html><html>secret</html>",
    "HTML page": b"<!-- hi --> <html>secret",
    "SVG": b"<?xml version='1.0'?><svg>secret</svg>",
    "SVG drawing": b"<svg xmlns='secret'/>",
    "XML": b"<?xml version='1.0'?><secret/>",
    "PDF": b"%PDF-1.7 secret",
    "PostScript": b"%!PS-Adobe-3.0 EPSF\n(secret) run",
    "PostScript file": b"\xc5\xd0\xd3\xc6 secret \0",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:secret",
    "text": b"secret words\n",
    "text file": "sécret".encode(),
    "zip": b"PK\3\4secret\0",
    "archive": b"\x1f\x8b\x08secret",
    "video": b"\0\0\0\x18ftypmp42secret\0",
    "video,": b"RIFF\1\0\0\0AVI secret\0",
    "mesh": b"glTF\2\0\0\0secret",
    "mesh,": b"ply\nformat binary",
    "Photoshop": b"8BPS\0\1secret",
    "camera raw": b"II*\0\x10\0\0\0CR\2\0secret",
    "JPEG XL": b"\xff\x0asecret",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\nsecret",
    "icon": b"\0\0\1\0\1\0secret",
    "HEIF": b"\0\0\0\x14ftypmif1\0\0\0\0miafsecret",
    "zeros": bytes(5000),
    "no known kind": b"\1\2\3secret\4",
    "text file,": b"BM, said the secret bitmap",
}


@pytest.mark.parametrize("word", NOT_PHOTOS)
def test_what_is_no_photo_is_named_for_what_it_is(word: str) -> None:
    with pytest.raises(PhotoError) as caught:
        decode(NOT_PHOTOS[word], "photo.png")
    message = str(caught.value)
    assert word in message and caught.value.remedy and "\n" not in message and len(message) < 140
    assert "secret" not in message


# Limits


@pytest.mark.parametrize("side", [8100, 12000, 60000, 2**31 - 1])
def test_a_pixel_bomb_is_refused_from_the_header(side: int) -> None:
    data = bytearray(build_png(SIDE, SIDE, 8, 0, bytes(SIDE * SIDE)))
    data[16:24] = struct.pack(">II", side, side)
    tracemalloc.start()
    try:
        began = time.monotonic()
        with pytest.raises(PhotoError, match="megapixels"):
            decode(reseal(data))
        assert time.monotonic() - began < 0.5 and tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PNG"])
def test_pixels_are_counted_before_any_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(paint(), kind)
    monkeypatch.setattr(photos, "MAX_PIXELS", 40 * 60 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(PhotoError, match="60 x 40 pixels, over"):
        decode(data)


def test_sixty_four_megapixels_are_the_limit() -> None:
    photos._check_size((9248, 6936), "a phone's 64 megapixels")
    with pytest.raises(PhotoError, match="megapixels"):
        photos._check_size((8100, 8000), "")


def test_small_and_narrow_photos_are_refused() -> None:
    assert decode(save(paint(32, 32), "PNG")).rgba.shape == (32, 32, 4)
    assert decode(save(paint(32, 640), "PNG")).rgba.shape == (32, 640, 4)
    for height, width, word in ((31, 40, "under 32"), (40, 31, "under 32"), (32, 641, "20 to 1"), (641, 32, "20 to 1")):
        with pytest.raises(PhotoError, match=word):
            decode(save(paint(height, width), "PNG"))


BOMB = zlib.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"k\0\0" + BOMB),
        chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"k\0\0" + BOMB),
        b"".join(chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(10**6))) for i in range(70)),
    ],
    ids=["zTXt", "iTXt", "iCCP", "many"],
)
def test_metadata_bombs_are_refused(extra: bytes) -> None:
    with pytest.raises(PhotoError, match="too much"):
        decode(build_png(SIDE, SIDE, 8, 0, bytes(SIDE * SIDE), extra))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = save(paint(), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(PhotoError, match="scans"):
        decode(data[:start] + data[start:-2] * 600 + data[-2:])


# Damage

SAVED = {
    "JPEG": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "AVIF": ("AVIF", {}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
}


def textured() -> np.ndarray:
    return paint(64, 64) ^ np.random.default_rng(0).integers(0, 32, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("way", SAVED)
def test_a_truncated_photo_is_never_a_partial_picture(way: str) -> None:
    kind, options = SAVED[way]
    data = save(textured(), kind, **options)
    whole = decode(data).rgba
    cuts = {len(data) * i // 40 for i in range(1, 40)} | {len(data) - i for i in range(1, 10)}
    for cut in cuts:
        try:
            picture = decode(data[:cut])
        except PhotoError:
            continue
        # A GIF whose pixels are all there may lack its last byte or two.
        assert way == "GIF" and cut >= len(data) - 2 and np.array_equal(picture.rgba, whole)


@pytest.mark.parametrize("way", ["JPEG", "PNG", "WebP", "GIF", "AVIF", "BMP", "TIFF"])
def test_truncation_is_said_in_those_words(way: str) -> None:
    data = save(textured(), *SAVED[way][:1], **SAVED[way][1])
    with pytest.raises(PhotoError) as caught:
        decode(data[: len(data) // 2], "half")
    assert caught.value.what.startswith("truncated") and way in caught.value.what
    assert caught.value.where == "half" and caught.value.remedy == "save or download it again"


def test_every_flipped_checksum_of_a_png_is_refused() -> None:
    data = build_png(SIDE, SIDE, 8, 2, paint(SIDE, SIDE).tobytes(), chunk(b"tEXt", b"k\0v"))
    decode(data)
    start = 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        for at in (end - 1, end - 4):
            broken = bytearray(data)
            broken[at] ^= 1
            with pytest.raises(PhotoError, match="damaged PNG"):
                decode(bytes(broken))
        start = end


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_mutants_give_a_picture_or_our_error(kind: str) -> None:
    rng = np.random.default_rng(7)
    data = save(textured(), kind, **{"icc_profile": build_profile(b"RGB ", 2.2)} if kind == "JPEG" else {})
    errors = 0
    began = time.monotonic()
    for _ in range(334):
        mutant = bytearray(data)
        for at in rng.integers(0, len(mutant), rng.integers(1, 9)):
            mutant[at] = rng.integers(0, 256)
        try:
            picture = decode(reseal(mutant) if kind == "PNG" else bytes(mutant))
            assert picture.rgba.dtype == np.uint8 and picture.rgba.shape[2] == 4
        except Zero123Error:
            errors += 1
    assert errors > 10
    assert time.monotonic() - began < 5


def test_a_decoder_s_exception_is_translated_and_its_text_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(paint(), "PNG")
    for raised, expected in (
        (ValueError("secret"), PhotoError),
        (KeyError("secret"), PhotoError),
        (RecursionError("secret"), PhotoError),
        (MemoryError("secret"), OutOfMemoryError),
    ):

        def fail(self: object, raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
        with pytest.raises(expected) as caught:
            decode(data)
        assert "secret" not in str(caught.value)


def test_what_the_watch_raises_is_its_own_affair() -> None:
    def stop(message: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        photos.decode(Photo("", save(paint(), "PNG", icc_profile=b"nonsense")), stop)


# Orientation


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("n", range(1, 9))
def test_orientation_n_is_upright(kind: str, n: int) -> None:
    exif = Image.Exif()
    exif[274] = n
    options = {"PNG": {"exif": exif}, "WEBP": {"exif": exif, "lossless": True}, "TIFF": {"tiffinfo": {274: n}}}[kind]
    assert np.array_equal(colours(save(paint(), kind, **options)), UPRIGHT[n](paint()))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
@pytest.mark.parametrize("n", range(1, 9))
def test_orientation_n_is_upright_in_lossy_kinds(kind: str, n: int) -> None:
    exif = Image.Exif()
    exif[274] = n
    straight = colours(save(paint(), kind, quality=95))
    assert np.array_equal(colours(save(paint(), kind, quality=95, exif=exif)), UPRIGHT[n](straight))


def xmp(n: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{n}"/></x:xmpmeta>'.encode()


def test_xmp_orientation_counts_where_exif_has_none() -> None:
    for n in range(1, 9):
        data = save(paint(), "WEBP", lossless=True, xmp=xmp(str(n)))
        assert np.array_equal(colours(data), UPRIGHT[n](paint()))
    exif = Image.Exif()
    exif[274] = 3
    both = save(paint(), "WEBP", lossless=True, xmp=xmp("6"), exif=exif)
    assert np.array_equal(colours(both), UPRIGHT[3](paint()))
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp("6"))
    png = build_png(60, 40, 8, 2, paint().tobytes(), text)
    assert np.array_equal(colours(png), UPRIGHT[6](paint()))


def test_senseless_orientation_is_ignored() -> None:
    for n in (0, 9, 65535):
        exif = Image.Exif()
        exif[274] = n
        assert np.array_equal(colours(save(paint(), "PNG", exif=exif)), paint())
    for bad in (
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"nonsense",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1\2",
    ):
        assert np.array_equal(colours(save(paint(), "PNG", exif=bad)), paint())
        assert colours(save(paint(), "JPEG", exif=bad)).shape == (40, 60, 3)
    assert np.array_equal(colours(save(paint(), "WEBP", lossless=True, xmp=xmp("9"))), paint())


def test_alpha_turns_with_its_picture() -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture = paint(channels=4)
    assert np.array_equal(decode(save(picture, "PNG", exif=exif)).rgba, UPRIGHT[6](picture))


# Depth


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    want = np.rint(deep / 257).astype(np.uint8)
    for data in (
        build_png(SIDE, SIDE, 16, 0, deep.astype(">u2").tobytes()),
        save(deep, "TIFF"),
        save(deep.astype(">u2"), "TIFF"),
        save(deep, "TIFF", compression="tiff_lzw"),
        save(deep.astype(np.int32), "TIFF"),
        save((deep / 65535).astype(np.float32), "TIFF"),
        save(65535 - deep, "TIFF", tiffinfo={262: 0}),  # white is zero
    ):
        result = decode(data)
        assert difference(result.rgba[..., 0], want) == 0 and not result.has_alpha
        assert np.array_equal(result.rgba[..., 0], result.rgba[..., 2])


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_keeps_its_high_bytes(colour: int, channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE, channels), np.uint16)
    rgba = decode(build_png(SIDE, SIDE, 16, colour, deep.astype(">u2").tobytes())).rgba
    got = rgba[..., [0, 3]] if channels == 2 else rgba[..., :channels]
    assert difference(got, np.rint(deep / 257)) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.5])
def test_float_outside_the_unit_range_is_refused(value: float) -> None:
    picture = np.full((SIDE, SIDE), 0.5, np.float32)
    assert (colours(save(picture, "TIFF")) == 128).all()
    picture[3, 4] = value
    with pytest.raises(PhotoError, match="outside 0 to 1"):
        decode(save(picture, "TIFF"))


def test_integers_of_more_than_sixteen_bits_are_refused() -> None:
    for value in (70000, -1):
        with pytest.raises(PhotoError, match="outside 0 to 65535"):
            decode(save(np.full((SIDE, SIDE), value, np.int32), "TIFF"))


def test_twelve_bit_tiff_is_scaled() -> None:
    entries = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 273: 200, 277: 1, 278: SIDE, 279: SIDE * SIDE * 3 // 2}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    # Two pixels in three bytes: 0xfff and 0x800.
    data = head.ljust(200, b"\0") + b"\xff\xf8\x00" * (SIDE * SIDE // 2)
    assert colours(data)[0, :2, 0].tolist() == [255, 128]


def test_a_camera_raw_in_tiff_clothes_is_refused() -> None:
    for tags in ({50706: b"\1\4\0\0"}, {254: 1}):
        with pytest.raises(PhotoError, match="camera raw"):
            decode(save(paint(), "TIFF", tiffinfo=tags))


# Alpha


def test_alpha_is_kept_straight() -> None:
    picture = paint(channels=4)
    picture[..., 3] = np.arange(60) * 4
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        result = decode(save(picture, kind, **options))
        assert result.has_alpha and np.array_equal(result.rgba, picture)
    avif = decode(save(picture, "AVIF", quality=95))
    assert avif.has_alpha and difference(avif.rgba[..., 3], picture[..., 3]) < 8


def test_grey_with_alpha_is_kept() -> None:
    grey = paint(channels=2)
    result = decode(save(Image.fromarray(grey, "LA"), "PNG"))
    assert result.has_alpha
    assert np.array_equal(result.rgba[..., [0, 1, 2, 3]], grey[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_colour_key_becomes_alpha(bits: int) -> None:
    key, other = {1: (1, 0), 2: (2, 1), 4: (9, 8), 8: (9, 10), 16: (40000, 40001)}[bits]
    samples = np.array([key, other] * (SIDE // 2))
    row = "".join(f"{value:0{bits}b}" for value in samples)
    packed = int(row, 2).to_bytes(SIDE * bits // 8, "big") * SIDE
    result = decode(build_png(SIDE, SIDE, bits, 0, packed, chunk(b"tRNS", struct.pack(">H", key))))
    assert result.has_alpha
    assert result.rgba[5, :2, 3].tolist() == [0, 255]
    assert difference(result.rgba[5, :2, 0], np.rint(samples[:2] * 255 / (2**bits - 1))) == 0


def test_a_rgb_colour_key_becomes_alpha() -> None:
    for bits, letter in ((8, "B"), (16, "H")):
        high = 1 if bits == 8 else 256
        key, other = (1 * high, 2 * high, 3 * high), (4 * high, 5 * high, 6 * high)
        pixels = struct.pack(f">6{letter}", *key, *other) * (SIDE // 2) * SIDE
        result = decode(build_png(SIDE, SIDE, bits, 2, pixels, chunk(b"tRNS", struct.pack(">3H", *key))))
        assert result.has_alpha and result.rgba[7, :2].tolist() == [[1, 2, 3, 0], [4, 5, 6, 255]]


def test_palette_transparency_becomes_alpha() -> None:
    indices = Image.fromarray(np.tile(np.arange(3, dtype=np.uint8), (33, 11)), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for transparency, want in ((1, [255, 0, 255]), (b"\x80\x00\xff", [128, 0, 255])):
        result = decode(save(indices, "PNG", transparency=transparency))
        assert result.has_alpha and result.rgba[0, :3, 3].tolist() == want
        assert result.rgba[0, :3, :3].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    gif = decode(save(indices, "GIF", transparency=2))
    assert gif.has_alpha and gif.rgba[0, :3, 3].tolist() == [255, 255, 0]
    opaque = decode(save(indices, "PNG"))
    assert not opaque.has_alpha and opaque.rgba[0, 2].tolist() == [70, 80, 90, 255]


def test_one_bit_is_black_and_white() -> None:
    picture = Image.fromarray(paint()).convert("1")
    want = np.asarray(picture.convert("RGB"))
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(colours(save(picture, kind)), want)


@pytest.mark.parametrize("extra, samples", [(1, 4), (1, 2)])
def test_premultiplied_alpha_is_divided_out(extra: int, samples: int) -> None:
    mode = "RGBA" if samples == 4 else "LA"
    pixel = [60, 30, 10, 100] if samples == 4 else [60, 100]
    data = save(Image.fromarray(np.tile(np.array(pixel, np.uint8), (SIDE, SIDE, 1)), mode), "TIFF")
    entry = struct.pack("<HHI", 338, 3, 1)  # ExtraSamples: 2 straight, 1 premultiplied
    at = data.index(entry) + len(entry)
    result = decode(data[:at] + struct.pack("<H", extra) + data[at + 2 :])
    want = [153, 76, 25, 100] if samples == 4 else [153, 153, 153, 100]
    assert result.has_alpha and np.abs(result.rgba[0, 0].astype(int) - want).max() <= 1


def test_a_fully_transparent_photo_holds_nothing() -> None:
    for alpha in (0, 1, 7):
        with pytest.raises(NothingFoundError, match="fully transparent"):
            decode(save(flat(200, 100, 50, alpha), "PNG"))
    assert decode(save(flat(200, 100, 50, 8), "PNG")).has_alpha
    picture = flat(200, 100, 50, 0)
    picture[3, 4, 3] = 255
    assert decode(save(picture, "PNG")).rgba[..., 3].sum() == 255


# Frames


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_the_first_frame_is_used_with_a_caution(kind: str) -> None:
    frames = [Image.fromarray(flat(*colour)) for colour in ((250, 10, 10), (10, 250, 10), (10, 10, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture, cautions = decode_with_cautions(data)
    assert cautions == ["animated"]
    assert difference(picture.rgba[..., :3], flat(250, 10, 10)) < 6
    assert decode_with_cautions(save(frames[0], kind, **options))[1] == []


# Colour


def linear(value: np.ndarray, gamma: float) -> np.ndarray:
    """What sRGB shows for light that a pure gamma encoded."""
    light = (value / 255) ** gamma
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_profile_with_swapped_primaries_swaps_the_colours(kind: str) -> None:
    picture = paint()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = save(picture, kind, icc_profile=build_profile(b"RGB ", 2.2, "bgr"), **options)
    result, cautions = decode_with_cautions(data)
    assert cautions == []
    assert np.abs(result.rgba[..., :3] - linear(picture[..., ::-1], 2.2)).mean() < 2


def test_gamma_of_the_profile_counts() -> None:
    for gamma in (1.0, 1.8, 2.6):
        data = save(paint(), "PNG", icc_profile=build_profile(b"RGB ", gamma))
        assert np.abs(colours(data) - linear(paint(), gamma)).mean() < 2


def test_a_srgb_profile_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(colours(save(textured(), "PNG", icc_profile=profile)), textured())


def test_a_profile_leaves_alpha_alone() -> None:
    picture = paint(channels=4)
    result = decode(save(picture, "PNG", icc_profile=build_profile(b"RGB ", 2.2, "grb")))
    assert np.array_equal(result.rgba[..., 3], picture[..., 3])
    assert np.abs(result.rgba[..., :3] - linear(picture[..., [1, 0, 2]], 2.2)).mean() < 2


def test_a_grey_profile_counts_for_grey_however_it_is_stored() -> None:
    profile, grey = build_profile(b"GRAY", 1.0), paint()[..., 0]
    want = linear(np.repeat(grey[..., None], 3, 2), 1.0)
    iccp = chunk(b"iCCP", b"grey\0\0" + zlib.compress(profile))
    deep = np.stack([grey.astype(">u2") * 257, np.full(grey.shape, 65535, ">u2")], -1)
    for data in (
        save(grey, "PNG", icc_profile=profile),
        build_png(60, 40, 16, 0, (grey.astype(">u2") * 257).astype(">u2").tobytes(), iccp),
        build_png(60, 40, 16, 4, deep.astype(">u2").tobytes(), iccp),
    ):
        result, cautions = decode_with_cautions(data)
        assert cautions == [] and np.abs(result.rgba[..., :3] - want).mean() < 2


def test_an_unreadable_or_unfitting_profile_is_ignored_with_a_caution() -> None:
    good = build_profile(b"RGB ", 2.2)
    for profile in (b"nonsense", good[:100], bytes(500), build_profile(b"GRAY", 2.2), good.replace(b"RGB ", b"CMYK")):
        result, cautions = decode_with_cautions(save(paint(), "PNG", icc_profile=profile))
        assert cautions == ["bad-icc"] and np.array_equal(result.rgba[..., :3], paint())


def test_a_caution_is_a_caution() -> None:
    messages: list[object] = []
    photos.decode(Photo("photo", save(paint(), "PNG", icc_profile=b"bad")), messages.append)
    assert isinstance(messages[0], Caution) and "profile" in str(messages[0])


def test_cmyk_without_a_profile_goes_through_pillow() -> None:
    colour = Image.fromarray(flat(200, 100, 50))
    cmyk = colour.convert("CMYK")
    assert difference(colours(save(cmyk, "TIFF")), flat(200, 100, 50)) <= 2
    # Pillow writes Adobe's inverted CMYK JPEG, as Photoshop does.
    jpeg = save(cmyk, "JPEG", quality=100)
    assert b"Adobe" in jpeg and difference(colours(jpeg), flat(200, 100, 50)) <= 4


def test_lab_becomes_srgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(flat(200, 100, 50)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert difference(colours(save(lab, "TIFF")), flat(200, 100, 50)) <= 3


# The odd images of other projects: size, alpha and cautions, or the error and a word of it.

OUTCOMES: dict[str, tuple[object, ...]] = {
    "16-bit-grey-alpha.png": ((96, 109), True, []),
    "65536-uint32-limit.png": (PhotoError, "megapixels"),
    "Channel_digital_image_CMYK_color.jpg": ((333, 500), False, []),
    "Flag_of_the_Netherlands-16bit.png": ((600, 900), False, []),
    "Landscape_3.jpg": ((1200, 1800), False, []),
    "Landscape_6.jpg": ((1200, 1800), False, []),
    "Landscape_8.jpg": ((1200, 1800), False, []),
    "Portrait_3.jpg": ((1800, 1200), False, []),
    "Portrait_6.jpg": ((1800, 1200), False, []),
    "Portrait_8.jpg": ((1800, 1200), False, []),
    "corrupt-header.jpg": (PhotoError, "truncated JPEG"),
    "decompression_bomb.gif": (PhotoError, "megapixels"),
    "example.avif": ((533, 800), False, []),
    "example.heic": ((854, 1280), False, []),
    "full-transparent.png": (NothingFoundError, "fully transparent"),
    "p_trns_single.png": ((64, 64), True, []),
    "pil_sample_cmyk.jpg": ((100, 100), False, []),
    "rotating-squares.webp": ((80, 80), True, ["animated"]),
    "truncated.jpg": (PhotoError, "truncated JPEG"),
    "truncated.png": (PhotoError, "truncated PNG"),
}


@pytest.fixture
def odd() -> Iterator[Path]:
    if not ODD.is_dir():
        pytest.skip("shared/data/odd-images is not present")
    yield ODD


@pytest.mark.parametrize("name", OUTCOMES)
def test_odd_images_have_their_expected_outcome(odd: Path, name: str) -> None:
    if name.endswith(".heic"):
        pytest.importorskip("pi_heif", reason="pi_heif is not installed")
    first, *rest = OUTCOMES[name]
    photo = photos.read(odd / name)
    if isinstance(first, type):
        with pytest.raises(Zero123Error, match=str(rest[0])) as caught:
            photos.decode(photo)
        assert type(caught.value) is first
        return
    picture, cautions = decode_with_cautions(photo.data)
    assert [picture.rgba.shape[:2], picture.has_alpha, cautions] == [first, *rest]


@pytest.mark.parametrize("name, others", [("Landscape", (6, 8)), ("Portrait", (6, 8))])
def test_odd_images_of_one_scene_agree_however_they_are_turned(odd: Path, name: str, others: tuple[int, ...]) -> None:
    def shrink(n: int) -> np.ndarray:
        picture = photos.decode(photos.read(odd / f"{name}_{n}.jpg")).rgba[..., :3].astype(float)
        return picture.reshape(picture.shape[0] // 60, 60, picture.shape[1] // 60, 60, 3).mean((1, 3))

    for other in others:
        assert np.abs(shrink(3) - shrink(other)).mean() < 1  # each bears its own number


def test_a_truncated_heic_is_refused(odd: Path) -> None:
    pytest.importorskip("pi_heif", reason="pi_heif is not installed")
    data = (odd / "example.heic").read_bytes()
    for cut in (30, 200, 1000, 5000, len(data) // 2, len(data) - 1):
        with pytest.raises(PhotoError):
            decode(data[:cut])


def test_cmyk_goes_through_its_profile(odd: Path) -> None:
    photo = photos.read(odd / "Channel_digital_image_CMYK_color.jpg")
    with Image.open(BytesIO(photo.data)) as cmyk:
        profile = ImageCms.ImageCmsProfile(BytesIO(cmyk.info["icc_profile"]))
        want = ImageCms.profileToProfile(cmyk, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        naive = cmyk.convert("RGB")
    got = colours(photo.data)
    assert np.array_equal(got, np.asarray(want))
    assert np.abs(got.astype(int) - np.asarray(naive)).mean() > 5
