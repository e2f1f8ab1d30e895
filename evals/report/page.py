"""Building blocks of the report: the page and its style, tables, pictures, plots."""

import base64
import functools
import importlib.util
import io
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

COLORS = {"train": "#4c8dff", "validation": "#e8743b"}
INK = "#010203"
"""Placeholder colour in plots, which is replaced by the text colour (light or dark mode)."""


REPORT_NEEDS = (
    "no page: it needs jinja2, matplotlib, scikit-learn and sacrebleu: pip install 'purezoo[evals]'"
)


def can_render() -> bool:
    """Whether the packages that reports need are installed (the extra ``evals``)."""
    packages = ("jinja2", "matplotlib", "sklearn", "sacrebleu")
    return all(importlib.util.find_spec(package) is not None for package in packages)


@functools.cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader

    folder = pathlib.Path(__file__).parent / "assets"
    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, keep_trailing_newline=False
    )


def render(template: str, **values: Any) -> str:
    """Renders a template from ``assets``.  Values are escaped unless they are ``Markup``.

    The result is ``Markup``, so it can be a value of another template.
    """
    from markupsafe import Markup

    return Markup(_templates().get_template(template).render(values))


def page(title: str, sections: Iterable[str]) -> str:
    """A self-contained HTML page."""
    from markupsafe import Markup

    style = (pathlib.Path(__file__).parent / "assets" / "style.css").read_text("utf-8")
    return (
        render("page.html", title=title, style=Markup(style), sections=map(Markup, sections)) + "\n"
    )


def titled(title: str, body: str) -> str:
    """A section: a heading with HTML below it."""
    from markupsafe import Markup

    return render("section.html", title=title, body=Markup(body))


def listing(items: Iterable[tuple[Any, Any]]) -> str:
    """A table of names and values."""
    return render("facts.html", items=list(items))


def show_output(value: float) -> str:
    """A probability in per cent; another output as a number."""
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"


def unbroken(output: Any) -> str:
    """An output of a classifier, on one line."""
    return show_output(float(output)).replace(" ", "\N{NO-BREAK SPACE}")


def legend(items: Iterable[tuple[str, str]]) -> str:
    """A legend of (name, colour), shared by several plots."""
    return render("legend.html", items=items)


def strip(figures: Iterable[tuple[str, str]]) -> str:
    """Figures side by side: (picture, caption) of each."""
    return render("strip.html", figures=figures)


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether examples of this shape are images: [height, width, channels], grey, RGB or RGBA."""
    return len(shape) == 3 and shape[-1] in (1, 3, 4)


def as_images(inputs: Any, input_range: tuple[float, float]) -> np.ndarray | None:
    """Converts raw images [n, height, width(, channels)] to uint8; None if inputs are not images.

    Returns [n, height, width] for grey images, else [n, height, width, 3 or 4].
    Without a channel axis, only bytes are images: other matrices may be sequences.
    """
    if not isinstance(inputs, np.ndarray):
        return None
    if not is_image_shape(inputs.shape[1:]) and not (inputs.ndim == 3 and inputs.dtype == np.uint8):
        return None
    pixels = as_bytes(inputs, input_range)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def as_bytes(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Scales a range of numbers to 0 ... 255, uint8 of the same shape; 0 if the range is empty."""
    low, high = value_range
    pixels = (values.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def picture(pixels: np.ndarray, alt: str) -> str:
    """HTML image of bytes [height, width] or [height, width, channels].

    2 channels are grey and opacity, 3 are RGB, 4 are RGBA.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return render("picture.html", data=base64.b64encode(buffer.getvalue()).decode(), alt=alt)


def plot(name: str, draw: Callable[[Any], None]) -> str:
    """SVG of a matplotlib plot.  draw(axes): draws the content.  name: the title."""

    def content(figure: Any) -> None:
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(name, loc="left", fontsize=12)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)

    return figure_svg(name, content, (5, 3.2))


def figure_svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """SVG of a matplotlib figure.  draw(figure): draws the content.  name: unique in the page.

    size: in inches, of 72 pixels.
    """
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 11,
        "legend.frameon": False,
    }
    style |= dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        INK,
    )
    buffer = io.StringIO()
    with matplotlib.rc_context(style):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor"))


def sound(samples: np.ndarray, rate: int) -> str:
    """HTML player of samples [n] in -1..1, as a 16-bit WAV."""
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        pcm = np.clip(np.round(samples * 32768), -32768, 32767)
        file.writeframes(pcm.astype("<i2").tobytes())
    return render("sound.html", data=base64.b64encode(buffer.getvalue()).decode())
