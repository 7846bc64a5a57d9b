"""Pictures for people: contact sheets with labels, and turntables as gif, webp or mp4."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import UnavailableError

MARGIN = 6  # px around each picture of a sheet
FRAME_TIME = 120  # ms a frame of a turntable


def contact_sheet(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int = 0) -> Image.Image:
    """The pictures (uint8, all of one size) in rows, each with its label under it."""
    tiles = [on_white(picture) for picture in pictures]
    columns = columns or best_columns(len(tiles))
    width, height = tiles[0].size
    font = ImageFont.load_default(size=max(11, width // 18))
    strip = int(font.size) + 2 * MARGIN  # type: ignore[union-attr]  # a scalable font, since a size was asked for
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, rows * (height + strip) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        left = MARGIN + place % columns * (width + MARGIN)
        top = MARGIN + place // columns * (height + strip)
        sheet.paste(tile, (left, top))
        pen.text((left + width / 2, top + height + strip / 2), label, fill="black", anchor="mm", font=font)
    return sheet


def best_columns(count: int) -> int:
    """A sheet about as wide as high, rather wider, with few holes in its last row."""
    start = max(1, round(count**0.5))
    return min(range(start, min(count, start + 3) + 1), key=lambda columns: (-count % columns, columns))


def on_white(picture: np.ndarray) -> Image.Image:  # uint8 (H, W, 3) or (H, W, 4)
    image = Image.fromarray(picture)
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def encode_animation(pictures: Sequence[np.ndarray], suffix: str) -> bytes:
    """A looping animation as the bytes of a .gif, .webp or .mp4 file."""
    frames = [on_white(picture) for picture in pictures]
    if suffix == ".mp4":
        return encode_mp4(frames)
    page = io.BytesIO()
    more = {"quality": 90} if suffix == ".webp" else {"optimize": False}
    frames[0].save(
        page, suffix[1:].upper(), save_all=True, append_images=frames[1:], duration=FRAME_TIME, loop=0, **more
    )
    return page.getvalue()


def find_ffmpeg() -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        raise UnavailableError("ffmpeg is not installed", where=".mp4", remedy="install it, or write .webp or .gif")
    return program


def encode_mp4(frames: Sequence[Image.Image]) -> bytes:
    """Through the user's own ffmpeg, fed by a pipe: the file must be seekable, hence fragmented."""
    program = find_ffmpeg()
    width, height = (side - side % 2 for side in frames[0].size)  # H.264 wants even sides
    rate = f"{1000 / FRAME_TIME:.4f}"
    command = [program, "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", rate, "-i", "-", "-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "-"]
    raw = b"".join(frame.crop((0, 0, width, height)).tobytes() for frame in frames)
    run = subprocess.run(command, input=raw, capture_output=True)
    if run.returncode:
        reason = run.stderr.decode(errors="replace").strip().splitlines()
        why = f" ({reason[-1]})" if reason else ""
        raise UnavailableError(f"ffmpeg failed{why}", where=".mp4", remedy="write .webp or .gif")
    return run.stdout


def encode_png(picture: np.ndarray | Image.Image) -> bytes:
    """A PNG, the same bytes for the same pixels."""
    page = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(page, "PNG")
    return page.getvalue()
