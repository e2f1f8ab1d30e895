"""What the sections of a report are made of: the page and its style, tables, pictures, plots."""

import base64
import html
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

COLORS = {"train": "#4c8dff", "validation": "#e8743b"}
INK = "#010203"
"""What matplotlib draws in this colour takes the colour of the text, light or dark."""


NEEDS = "<p>{what} needs {package}: <code>pip install 'purezoo[evals]'</code></p>"


def titled(title: str, body: str) -> str:
    """A heading and what is below it."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def listing(items: Iterable[tuple[Any, Any]]) -> str:
    """A table of names and values."""
    lines = "".join(f"<tr><th>{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>" for key, value in items)
    return f'<table class="facts">{lines}</table>'


def show_output(value: float) -> str:
    """A probability in per cent; another output as a number."""
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"


def unbroken(output: Any) -> str:
    """An output of a classifier, on one line."""
    return show_output(float(output)).replace(" ", "&nbsp;")


def legend(items: Iterable[tuple[str, str]]) -> str:
    """Names and their colours, for several plots."""
    entries = "".join(f'<span><i style="background:{color}"></i>{html.escape(name)}</span>' for name, color in items)
    return f'<p class="legend">{entries}</p>'


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether examples of this shape are images: [height, width, channels], grey, RGB or RGBA."""
    return len(shape) == 3 and shape[-1] in (1, 3, 4)


def as_images(inputs: Any, input_range: tuple[float, float]) -> np.ndarray | None:
    """Raw inputs [n, height, width(, channels)] -> uint8 [n, height, width] or [n, height, width, 3 or 4]; None if no images.

    Without a channel axis only bytes are images: other matrices are as likely sequences.
    """
    if not isinstance(inputs, np.ndarray):
        return None
    if not is_image_shape(inputs.shape[1:]) and not (inputs.ndim == 3 and inputs.dtype == np.uint8):
        return None
    pixels = as_bytes(inputs, input_range)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def as_bytes(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Numbers -> uint8 of the same shape, so that the range becomes 0 to 255; 0 where the range is empty."""
    low, high = value_range
    pixels = (values.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def picture(pixels: np.ndarray, alt: str) -> str:
    """Bytes [height, width], or [height, width, channels]: 2 grey and opacity, 3 RGB, 4 RGBA."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" title="{html.escape(alt)}">'


def plot(name: str, draw: Callable[[Any], None]) -> str:
    """SVG of what ``draw(axes)`` draws with matplotlib; the name is its title."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 11, "legend.frameon": False}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK)
    buffer = io.StringIO()
    with matplotlib.rc_context(style):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(name, loc="left", fontsize=12)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #626a73; --page: #fff; --box: #f3f5f7; --line: #dde1e5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa3ad; --page: #16191d; --box: #20252b; --line: #343b43; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: .5rem 0 1rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin-bottom: 1rem; }
.tiles div { background: var(--box); border-radius: .5rem; padding: .75rem 1rem; }
.tiles div > span { color: var(--soft); font-size: .875rem; } .tiles b { display: block; font-size: 1.75rem; line-height: 1.3; }
small { font-weight: normal; font-size: 1rem; } code { white-space: nowrap; } .note { color: var(--soft); font-size: .8125rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
.facts { width: 100%; } .facts th { text-align: left; font-weight: normal; color: var(--soft); width: 34%; }
.facts th, .facts td { padding: .25rem .75rem .25rem 0; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.facts.numbered th { width: 3rem; } .facts.numbered .note { display: inline-block; width: 4rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
.matrix th { font-weight: normal; color: var(--soft); padding: .25rem .5rem; }
.matrix td { text-align: center; padding: .25rem; min-width: 2.4rem; border: 1px solid var(--line); }
.matrix td.note { border: 0; padding-left: .75rem; }
.matrix caption { text-align: left; color: var(--soft); font-size: .8125rem; }
.hit { background: rgb(76 141 255 / var(--shade)); } .miss { background: rgb(232 116 59 / var(--shade)); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(8rem, 30%), 1fr)); gap: .75rem; }
.cards figure { background: var(--box); border-radius: .5rem; padding: .5rem; font-size: .8125rem; }
.weights { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.5rem, 1fr)); gap: .25rem; }
img { width: 100%; image-rendering: pixelated; border-radius: .25rem; display: block; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, min(100%, var(--width))); gap: .25rem 1rem; }
.signals img { height: 7rem; } .taps img { height: 8rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(3.75rem, 1fr)); gap: .75rem .5rem; }
.pairs img { margin-bottom: .25rem; } .pairs figcaption { font-size: .8125rem; color: var(--soft); }
.chains { width: 100%; table-layout: fixed; } .chains td, .chains th { padding: .125rem; }
.chains th { color: var(--soft); font-size: .8125rem; font-weight: normal; } .chains caption { text-align: left; }
.legend { display: flex; flex-wrap: wrap; gap: .125rem 1rem; font-size: .875rem; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: .375rem; margin-right: .375rem; }
.small.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13.5rem), 1fr)); }
.units { margin-top: .75rem; } .units img { height: 20rem; max-width: var(--width); }
.network { display: grid; grid-template-columns: minmax(0, 1fr) 15rem; gap: 2rem; }
.layers { display: flex; flex-direction: column-reverse; gap: 1rem; } .layers figcaption { margin-bottom: .25rem; }
.layers .weights { grid-template-columns: repeat(8, 1fr); } .input.weights img { grid-column: span 2; }
.network aside { position: sticky; top: 1rem; align-self: start; } aside p { margin-top: 0; }
.scores { width: 100%; } .scores th { text-align: left; font-weight: normal; max-width: 7rem; overflow-wrap: anywhere; }
.scores td { padding: .125rem 0 .125rem .5rem; text-align: right; } .scores td.bar { width: 55%; }
.bar div { height: .75rem; border-radius: .125rem; background: #4c8dff; } .true { font-weight: bold !important; }
.cards img { margin-bottom: .25rem; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 48rem) { .network { grid-template-columns: minmax(0, 1fr); } .network aside { order: -1; position: static; } }
@media (max-width: 32rem) { .matrix { font-size: .6875rem; } .matrix td, .matrix th { min-width: 0; padding: .25rem .2rem; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{sections}
</body>
</html>
"""
