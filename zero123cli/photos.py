"""Reads a photo and decodes it to an upright sRGB picture with straight alpha; refuses what is not one.

The format comes from the content, never from the name, and only that format's decoder of Pillow is opened (HEIC: of
pi_heif). Limits are checked on the header, before pixels are allocated, and again on what the decoder gave.
Letters: H height, W width.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from . import durable
from .artifacts import Photo, Picture
from .errors import (
    MissingInputError,
    NothingFoundError,
    OutOfMemoryError,
    PhotoError,
    UnavailableError,
    Zero123Error,
)
from .watch import Caution, Watch, silent

MAX_BYTES = 64_000_000  # bytes of one file
MAX_PIXELS = 64_500_000  # pixels; 64-megapixel phones give 9248 x 6936 = 64.1 million
MIN_SIDE = 32  # pixels
MAX_ASPECT = 20  # long side / short side
MAX_SCANS = 500  # scans of a JPEG, each of which costs a pass over all pixels; cameras and editors write at most 20
OPAQUE = 8  # of 255: a photo whose alpha stays below this everywhere shows nothing

PICTURES = {  # format -> how such a file begins
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}",
    "TIFF": rb"II[*+]\0(?!.{4}CR)|MM\0[*+]",
    "AVIF": rb".{4}ftyp(.{4}){0,15}?avi[fs]",
    "HEIC": rb".{4}ftyp(.{4}){0,15}?he[iv][cmsx]",
}

ANOTHER = "give a JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF or HEIC photo"
EXPORT = "export it as PNG or JPEG"
NON_PICTURES = {  # how such a file begins -> what it is, what to do
    rb"(\xef\xbb\xbf)?\s*(<\?xml.{0,2000}?|<!--.{0,2000}?|<!doctype svg.{0,2000}?)?<svg": ("an SVG drawing", EXPORT),
    rb"(\xef\xbb\xbf)?\s*(<!--.{0,2000}?-->\s*)?<(!doctype )?html": (
        "an HTML page",
        "download the picture itself, not the page around it",
    ),
    rb"(\xef\xbb\xbf)?\s*<\?xml": ("an XML file", ANOTHER),
    rb"version https://git-lfs": ("a git-lfs pointer", "fetch the picture with `git lfs pull`"),
    rb"%PDF-": ("a PDF document", EXPORT),
    rb"%!|\xc5\xd0\xd3\xc6": ("a PostScript file", EXPORT),
    rb"8BPS": ("a Photoshop document", EXPORT),
    rb"II\*\0.{4}CR|.{4}ftypcrx|FUJIFILMCCD-RAW": ("a camera raw file", EXPORT),
    rb"\xff\x0a|\0{3}\x0cJXL ": ("a JPEG XL picture", EXPORT),
    rb"\0{3}\x0cjP  |\xff\x4f\xff\x51": ("a JPEG 2000 picture", EXPORT),
    rb"\0\0[\x01\x02]\0": ("an icon", EXPORT),
    rb"v/1\x01|#\?RADIANCE": ("a high-dynamic-range picture", EXPORT),
    rb"DDS |qoif|P[1-7]\s": ("a picture of a format that is not read", EXPORT),
    rb".{4}ftypm(if|sf)1": ("a HEIF picture with a codec that is not read", EXPORT),
    rb".{4}(ftyp|moov|mdat)|\x1aE\xdf\xa3|RIFF.{4}AVI ": ("a video", "give one of its frames as PNG or JPEG"),
    rb"glTF|ply\r?\n|solid ": ("a mesh", "give a photo"),
    rb"PK\x03\x04": ("a zip archive", "unpack it and give the picture"),
    rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ": ("a compressed archive", "unpack it and give the picture"),
    rb"\0+\Z": ("a file of zeros", "save or download it again"),
    rb"[^\0-\x08\x0e-\x1f]+\Z": ("a text file", ANOTHER),
    rb"": ("a file of no known kind", ANOTHER),
}
HEAD = 4096  # bytes looked at to tell the kind

TURNS = {  # orientation as in EXIF -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 274  # EXIF and TIFF tag
SUBFILE, PHOTOMETRIC, BITS, DNG = 254, 262, 258, 50706  # TIFF tags

PLAIN = {  # mode of Pillow -> the mode of 8-bit straight channels that holds it, without and with transparency
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "La": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBA": ("RGBA", "RGBA"),
    "RGBa": ("RGBA", "RGBA"),
    "YCbCr": ("RGB", "RGBA"),
    "CMYK": ("CMYK", "CMYK"),
    "LAB": ("LAB", "LAB"),
}
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # more than 8 bits: Pillow's own conversion clips them to white


def read(path: Path | str, stdin: BinaryIO | None = None) -> Photo:
    """The photo at `path`, undecoded; "-" reads standard input."""
    if str(path) == "-":
        name, data = "stdin", _read_stream(stdin or getattr(sys.stdin, "buffer", None))
    else:
        # Undecodable bytes and control characters are shown escaped.
        name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
        data = _read_file(path, name)
    if not data:
        raise PhotoError("empty", where=name, remedy="save or download it again")
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name)
    return Photo(name, data)


def decode(photo: Photo, watch: Watch = silent) -> Picture:
    """The picture that the bytes of `photo` hold."""
    kind = _sniff(photo)
    cautions: list[Caution] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that Pillow grumbles about changes no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = _decode_as(kind, photo, cautions)
    except Zero123Error:
        raise
    except Exception as error:
        raise _explain(error, kind, photo.name) from error
    for caution in cautions:
        watch(caution)
    return picture


def _read_stream(stream: BinaryIO | None) -> bytes:
    if stream is None:
        raise MissingInputError("closed", where="stdin", remedy="pipe a photo in or give its path")
    try:
        return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise MissingInputError("cannot be read", where="stdin", remedy="give the photo's path") from error


def _read_file(path: Path | str, name: str) -> bytes:
    try:
        with open(durable.open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise _too_many_bytes(name)
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise MissingInputError(reason, where=name, remedy="check the path and its permissions") from error
    except ValueError as error:  # a NUL in the path
        raise MissingInputError("not a path", where=name, remedy="check the path") from error


def _too_many_bytes(name: str) -> PhotoError:
    return PhotoError(f"larger than {MAX_BYTES // 10**6} MB", where=name, remedy="save it smaller")


def _sniff(photo: Photo) -> str:
    """The format of `photo`, told from its first bytes."""
    if not photo.data:
        raise PhotoError("empty", where=photo.name, remedy="save or download it again")
    head = photo.data[:HEAD]
    for kind, pattern in PICTURES.items():
        if re.match(pattern, head, re.DOTALL):
            return kind
    for pattern, (what, remedy) in NON_PICTURES.items():
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise PhotoError(f"{what}, not a photo", where=photo.name, remedy=remedy)
    raise AssertionError("the last pattern matches everything")


def _decode_as(kind: str, photo: Photo, cautions: list[Caution]) -> Picture:
    if kind in CHECKS:
        CHECKS[kind](photo)
    image = _open_heic(photo) if kind == "HEIC" else Image.open(BytesIO(photo.data), formats=[kind.upper()])
    with image:
        _check_size(image.size, photo.name)
        _check_raw(image, photo.name)
        # A JPEG's further pictures are previews or the other eye, a HEIC's primary picture is marked.
        if kind not in ("JPEG", "HEIC") and getattr(image, "is_animated", False):
            cautions.append(Caution("animated", "holds several frames, the first is used"))
        image.load()
        _check_size(image.size, photo.name)  # a HEIC or AVIF stream may differ from its container
        turn = TURNS.get(_read_orientation(image))
        profile = image.info.get("icc_profile")
        plain = _reduce_depth(image, photo.name) if image.mode in DEEP else _make_plain(image, kind, photo)
    has_alpha = plain.mode.endswith("A")
    alpha = plain.getchannel("A") if has_alpha else None
    if alpha is not None and cast(tuple[int, int], alpha.getextrema())[1] < OPAQUE:
        raise NothingFoundError("fully transparent", where=photo.name, remedy="give a photo with something to see")
    colour = plain.convert(plain.mode.removesuffix("A"))
    upright = _convert_to_srgb(colour, profile, cautions).convert("RGBA")
    if alpha is not None:
        upright.putalpha(alpha)
    if turn is not None:
        upright = upright.transpose(turn)
    return Picture(np.array(upright, order="C"), has_alpha)


def _open_heic(photo: Photo) -> Image.Image:
    try:
        from pi_heif import HeifImageFile

        return cast(Image.Image, HeifImageFile(BytesIO(photo.data)))
    except ImportError as error:
        raise UnavailableError(
            "HEIC needs the package pi_heif", where=photo.name, remedy='pip install "zero123cli[heic]"'
        ) from error


def _check_png(photo: Photo) -> None:
    """Refuse torn or altered chunks: Pillow skips the checksums of pixel data."""
    data, start = memoryview(photo.data), 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise PhotoError("damaged PNG (a checksum is wrong)", where=photo.name, remedy="save or download it again")
        if bytes(data[start + 4 : start + 8]) == b"IEND":
            return
        start = end
    raise _truncated("PNG", photo.name)


def _check_webp(photo: Photo) -> None:
    if 8 + int.from_bytes(photo.data[4:8], "little") > len(photo.data):
        raise _truncated("WebP", photo.name)


def _check_jpeg(photo: Photo) -> None:
    if photo.data.count(b"\xff\xda") > MAX_SCANS:
        raise PhotoError(f"a JPEG of more than {MAX_SCANS} scans", where=photo.name, remedy="save it again")


def _check_boxes(photo: Photo) -> None:
    """Refuse an AVIF or HEIC whose outermost boxes reach past the end."""
    start = 0
    while start + 8 <= len(photo.data):
        size = int.from_bytes(photo.data[start : start + 4], "big")
        if size == 1:  # the size follows in 8 bytes
            size = int.from_bytes(photo.data[start + 8 : start + 16], "big")
        start += max(size, 8) if size else len(photo.data) - start  # 0: up to the end
    if start != len(photo.data):
        raise _truncated("AVIF or HEIC", photo.name)


CHECKS: dict[str, Callable[[Photo], None]] = {
    "PNG": _check_png,
    "WebP": _check_webp,
    "JPEG": _check_jpeg,
    "AVIF": _check_boxes,
    "HEIC": _check_boxes,
}


def _check_size(size: tuple[int, int], name: str) -> None:
    short, long = sorted(size)
    what = f"{size[0]} x {size[1]} pixels"
    if short * long > MAX_PIXELS:
        raise PhotoError(f"{what}, over {MAX_PIXELS // 10**6} megapixels", where=name, remedy="scale it down")
    if short < MIN_SIDE:
        raise PhotoError(f"{what}, under {MIN_SIDE} a side", where=name, remedy="give a larger photo")
    if long > MAX_ASPECT * short:
        raise PhotoError(f"{what}, longer than {MAX_ASPECT} to 1", where=name, remedy="crop it")


def _check_raw(image: Image.Image, name: str) -> None:
    """Refuse camera raw files in TIFF clothes, whose first picture is a thumbnail."""
    tags = getattr(image, "tag_v2", {})
    if DNG in tags or tags.get(SUBFILE) == 1:
        raise PhotoError("a camera raw file, not a photo", where=name, remedy=EXPORT)


def _read_orientation(image: Image.Image) -> int:
    """1 to 8 from EXIF, else from XMP; TIFF, AVIF and HEIC come upright and say 1."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _reduce_depth(image: Image.Image, name: str) -> Image.Image:
    """Grey of more than 8 bits as "L", or "LA" where one grey is keyed transparent."""
    tags: dict[int, Any] = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    top = 1 if image.mode == "F" else 4095 if tags.get(BITS) == (12,) else 65535
    if not (values.min() >= 0 and values.max() <= top):  # also false for NaN
        raise PhotoError(f"pixels outside 0 to {top}", where=name, remedy="save it with 8 or 16 bits")
    grey = np.rint(values * np.float32(255 / top)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero: Pillow turns only 1 to 8 bits round
        np.subtract(255, grey, out=grey)
    plain = Image.fromarray(grey)
    if "transparency" in image.info:
        plain.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return plain


def _make_plain(image: Image.Image, kind: str, photo: Photo) -> Image.Image:
    """The picture in 8-bit straight channels: L, LA, RGB, RGBA, CMYK or LAB."""
    if image.mode not in PLAIN:
        raise PhotoError(f"a {kind} with pixels of a kind that is not read", where=photo.name, remedy=EXPORT)
    if kind == "PNG" and image.mode in ("L", "RGB") and "transparency" in image.info:
        image.info["transparency"] = _scale_key(image.info["transparency"], photo.data[24])
    mode = PLAIN[image.mode][image.has_transparency_data]
    return image if image.mode == mode else image.convert(mode)


def _scale_key(key: Any, bits: int) -> Any:
    """A PNG's transparent colour in 8 bits, as Pillow scales the pixels but not the key.

    Of 16-bit colour Pillow keeps the high bytes, so colours that differ from the key in the low bytes alone go too.
    """
    if isinstance(key, tuple):
        return tuple(value >> (bits - 8) for value in key)
    return key * 255 // ((1 << bits) - 1)


def _convert_to_srgb(colour: Image.Image, profile: bytes | None, cautions: list[Caution]) -> Image.Image:
    """`colour` (L, RGB, CMYK or LAB) as sRGB; an unreadable or unfitting profile is ignored."""
    from PIL import ImageCms

    if colour.mode == "LAB":
        return _transform(colour, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            return _transform(_fit(colour, source.profile.xcolor_space.strip()), source)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            cautions.append(Caution("bad-icc", "the colour profile is unreadable and is ignored"))
    return colour.convert("RGB")


def _fit(colour: Image.Image, space: str) -> Image.Image:
    """`colour` in the channels that a profile of `space` is for."""
    if space == "RGB" and colour.mode in ("L", "RGB"):
        return colour.convert("RGB")
    if (space == "GRAY" and colour.mode == "L") or (space == "CMYK" and colour.mode == "CMYK"):
        return colour
    if space == "GRAY" and colour.mode == "RGB":
        red, green, blue = (channel.tobytes() for channel in colour.split())
        if red == green == blue:  # Pillow gives 16-bit grey with alpha as RGBA
            return colour.getchannel("R")
    raise ValueError("the profile is for other channels")


def _transform(colour: Image.Image, source: Any) -> Image.Image:
    """`colour` in sRGB; returned as it is when the profile is sRGB by another name."""
    from PIL import ImageCms

    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), colour.mode, "RGB")
    if colour.mode == "RGB":
        lattice = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), -1).reshape(64, 64, 3)
        moved = np.asarray(ImageCms.applyTransform(Image.fromarray(lattice), transform)).astype(int) - lattice
        if np.abs(moved).max() <= 2:  # the sRGB profiles in use differ among themselves by rounding
            return colour
    return cast(Image.Image, ImageCms.applyTransform(colour, transform))


def _truncated(kind: str, name: str) -> PhotoError:
    return PhotoError(f"truncated {kind}", where=name, remedy="save or download it again")


def _explain(error: Exception, kind: str, name: str) -> Zero123Error:
    """What a decoder's exception means; its text may quote the file and is never passed on."""
    text = str(error).lower()
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"out of memory while decoding the {kind}", where=name, remedy="scale it down")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return PhotoError(f"over {MAX_PIXELS // 10**6} megapixels", where=name, remedy="scale it down")
    if isinstance(error, EOFError) or "truncated" in text:
        return _truncated(kind, name)
    if "decompressed data too large" in text or "too much memory" in text:
        return PhotoError(
            f"a {kind} whose text or colour profile unpacks to too much", where=name, remedy="save it again"
        )
    return PhotoError(f"damaged {kind}, or of a kind that is not read", where=name, remedy=EXPORT)
