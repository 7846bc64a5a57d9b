"""The page with a picture of everything: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from ..report import encode_png, on_white
from .evaluate import METRICS, Protocol, Score, Sheet
from .published import Published

SHOWN = 128  # px of a picture on the page
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left } small { color: #666 }
section { border-top: 1px solid #ccc; padding: .6rem 0 } h2 { font-size: 1rem; margin: .3rem 0 }
figure { display: flex; align-items: center; gap: .8rem; margin: .3rem 0 } figcaption { flex: 0 0 17rem }
img { display: block; max-width: 100% }
"""


def build_page(
    title: str,
    protocol: Protocol,
    scores: Sequence[Score],
    sheets: Sequence[Sheet],
    labels: Mapping[str, str],
    published: Sequence[Published],
) -> str:
    """The table, then each object: its photo, the truth, and each model's answer with its figures."""
    keys = list(dict.fromkeys([*protocol.metrics, *(key for score in scores for key in score.metrics)]))
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>zero123 eval {title}</title><style>{STYLE}</style>",
        f"<h1>zero123 eval {title}</h1><p>Protocol {text(protocol.name)}: {text(protocol.says)}. "
        "Means with 95 % bootstrap intervals over objects.</p><table><tr><th>",
        *(f"<th>{METRICS[key].label}" for key in keys),
        "<th>objects<th>seconds",
    ]
    for score in scores:
        count = sum(not row.failure for row in score.rows)
        cells = [write_cell(score, key) for key in keys]
        parts.append(f"<tr><td>{text(labels[score.model])}{''.join(cells)}<td>{count}<td>{score.seconds:.1f}")
    for paper in published:
        cells = [f"<td>{paper.figures[key]}" if key in paper.figures else "<td>" for key in keys]
        source = f"<br><small>{text(paper.source)}; {text(paper.protocol)}</small>"
        parts.append(f"<tr><td>{text(paper.model)}, published{source}{''.join(cells)}<td><td>")
    parts.append("</table>")
    for sheet in sheets:
        parts += write_object(sheet, labels)
    return "\n".join(parts) + "\n</html>\n"


def write_cell(score: Score, key: str) -> str:
    if key not in score.metrics:
        return "<td>" + ("no weights" if key == "lpips" else "")
    found, digits = score.metrics[key], METRICS[key].digits
    return f"<td>{found.mean:.{digits}f}<br><small>{found.low:.{digits}f} to {found.high:.{digits}f}</small>"


def write_object(sheet: Sheet, labels: Mapping[str, str]) -> list[str]:
    name = sheet.rows[0].name
    photo = [] if sheet.photo is None else [sheet.photo]
    parts = [f"<section><h2>{text(name)}</h2>", write_figure("photo", photo), write_figure("truth", sheet.truth)]
    for row in sheet.rows:
        said = " ".join(f"{METRICS[key].label} {value:.{METRICS[key].digits}f}" for key, value in row.figures.items())
        caption = f"{text(labels[row.model])}<br><small>{text(row.failure) or said}</small>"
        parts.append(write_figure(caption, row.pictures))
    return [*parts, "</section>"]


def write_figure(caption: str, pictures: Sequence[np.ndarray]) -> str:
    """Pictures side by side as one."""
    if not pictures:
        return f"<figure><figcaption>{caption}</figcaption></figure>"
    tiles = [np.asarray(on_white(picture).resize((SHOWN, SHOWN))) for picture in pictures]
    data = base64.b64encode(encode_png(np.concatenate(tiles, 1))).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="">'
    return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"


def text(words: str) -> str:
    return html.escape(words)
