"""A preview as a picture for people: a panel for each step, with axes, units and limits."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import UsageError
from das_gpu.model import Status
from das_gpu.preview import ROBUST_PERCENT, Preview, Step
from das_gpu.redaction import redact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130
_LONGEST = 130
"""Letters of a source's name; of a longer one the middle is left out."""
_LETTERS_PER_INCH = 15
_DEAD = "#d62728"
_NO_DATA = "#e8e8e8"
_PLAIN: dict[str, Any] = {"parse_math": False}
"""A dollar in the name of a source is a dollar."""


def require_matplotlib() -> None:
    """Raise UsageError when there is nothing to draw with."""
    try:
        import matplotlib.figure  # noqa: F401 - whether it is there
    except ImportError as error:
        raise UsageError(
            "A preview is drawn by matplotlib, which is not installed. "
            "`pip install 'das-gpu[plot]'` brings it."
        ) from error


def draw(preview: Preview) -> bytes:
    """The picture, as PNG.

    Raises
    ------
    UsageError
        When matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever a user's own settings are
        mpl.rcParams["font.size"] = 9
        # Names may have letters that the font has not.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas: Any = FigureCanvasAgg(_figure(preview))
        canvas.draw()
    # Matplotlib's own way to a file draws everything twice.
    file, told = io.BytesIO(), PngInfo()
    told.add_text("Software", "das-gpu")
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.save(file, format="PNG", pnginfo=told, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return file.getvalue()


@dataclass(frozen=True)
class _Sheet:
    """Where things are on the picture, in inches: (left, bottom, width, height) from below."""

    width: float
    height: float
    panels: tuple[tuple[float, float, float, float], ...]
    bars: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def across(cls, panels: int, foot: float) -> _Sheet:
        """Panels side by side above a foot, each with its colour bar below."""
        left, width, apart, height = 0.95, 2.75, 0.32, 4.7
        lefts = [left + number * (width + apart) for number in range(panels)]
        return cls(
            width=lefts[-1] + width + 0.2,
            height=foot + 1.25 + height + 1.2,
            panels=tuple((x, foot + 1.25, width, height) for x in lefts),
            bars=tuple((x + 0.05, foot + 0.52, width - 0.1, 0.1) for x in lefts),
        )

    @classmethod
    def down(cls, panels: int, foot: float) -> _Sheet:
        """Panels one below the other above a foot, each with its colour bar to the right."""
        left, width, apart, height = 0.75, 8.6, 0.42, 1.6
        bottoms = [foot + 0.6 + number * (height + apart) for number in reversed(range(panels))]
        return cls(
            width=left + width + 1.9,
            height=bottoms[0] + height + 1.0,
            panels=tuple((left, y, width, height) for y in bottoms),
            bars=tuple((left + width + 0.85, y, 0.11, height) for y in bottoms),
        )

    def share(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box as shares of the picture, as matplotlib takes it."""
        left, bottom, width, height = box
        return left / self.width, bottom / self.height, width / self.width, height / self.height


def _figure(preview: Preview) -> Figure:
    from matplotlib.figure import Figure

    panels = len(preview.steps) + 1
    arrange = _Sheet.across if _time_down(preview) and preview.steps else _Sheet.down
    columns = int(arrange(panels, 0).width * _LETTERS_PER_INCH)
    caption = [
        line for text in _caption(preview) for line in textwrap.wrap(_printable(text), columns)
    ]
    sheet = arrange(panels, 0.15 + 0.16 * len(caption))
    figure = Figure(figsize=(sheet.width, sheet.height), dpi=DOTS_PER_INCH, facecolor="white")
    corner = 0.15 / sheet.width
    title = "\n".join(_title(preview))
    figure.text(corner, 1 - 0.12 / sheet.height, title, va="top", fontsize=10.5, **_PLAIN)
    foot = {"va": "bottom", "fontsize": 8, "color": "#333333", **_PLAIN}
    figure.text(corner, 0.1 / sheet.height, "\n".join(caption), **foot)
    axes, bars = (
        [figure.add_axes(sheet.share(box)) for box in boxes] for boxes in (sheet.panels, sheet.bars)
    )
    if preview.tile is None:
        bars[0].set_visible(False)
        _tell(axes[0], preview)
        return figure
    for number, step in enumerate(preview.steps):
        _panel(axes[number], bars[number], preview, number, step)
    _tile(axes[-1], bars[-1], preview, preview.tile)
    return figure


def _panel(axes: Axes, below: Axes, preview: Preview, number: int, step: Step) -> None:
    """One step, in its own colours."""
    low, high = (0.0, 1.0) if step.low is None or step.high is None else (step.low, step.high)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    colours = "RdBu_r" if step.swings else "magma" if step.name == "envelope" else "viridis"
    shown = axes.imshow(
        step.values.T if _time_down(preview) else step.values,
        extent=_extent(preview),
        vmin=low,
        vmax=high,
        cmap=colours,
        aspect="auto",
        interpolation="nearest",
        origin="upper",
    )
    _frame(axes, preview, number, step.title)
    _colour_bar(below, preview, shown, step.unit)
    below.set_visible(step.low is not None)


def _tile(axes: Axes, below: Axes, preview: Preview, tile: NDArray[Any]) -> None:
    """The last panel: what is delivered, pixel for pixel."""
    record, reference = preview.record, preview.plan.recipe.image.db_reference
    levels = tile.dtype.kind == "f"
    highest = 65535 if tile.dtype == np.uint16 else 255
    limits = (float(tile.min()), float(tile.max())) if levels else (0, highest)
    shown = axes.imshow(
        tile,
        extent=_extent(preview),
        vmin=limits[0],
        vmax=limits[1],
        cmap="gray",
        aspect="auto",
        interpolation="nearest",
        origin="upper",
    )
    height, width = tile.shape
    what = f"{width} x {height} {'values' if levels else 'pixels'}"
    _frame(axes, preview, len(preview.steps), f"Tile, {what}")
    bar = _colour_bar(below, preview, shown, f"dB re {reference}")
    if record.db_low is None or record.db_high is None:
        below.set_visible(False)
    elif not levels:
        share = np.linspace(0, 1, 5)
        span = record.db_high - record.db_low
        labels = [f"{record.db_low + part * span:.1f}" for part in share]
        bar.set_ticks((share * highest).tolist(), labels=labels)


def _frame(axes: Axes, preview: Preview, number: int, title: str) -> None:
    """Title, axes and dead channels."""
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(_NO_DATA)
    axes.set_title(f"{number + 1}  {title}", loc="left", fontsize=10, pad=6)
    down = _time_down(preview)
    time_axis, channel_axis = (axes.yaxis, axes.xaxis) if down else (axes.xaxis, axes.yaxis)
    dates = _dates()
    locator = dates.AutoDateLocator(minticks=4, maxticks=9)
    formats = ["%Y", "%b", "%d", "%H:%M", "%H:%M:%S", "%H:%M:%S.%f"]
    time_axis.set_major_locator(locator)
    time_axis.set_major_formatter(
        dates.ConciseDateFormatter(
            locator, formats=formats, zero_formats=formats, show_offset=False
        )
    )
    outer = number == (0 if down else len(preview.steps))
    axes.tick_params(axis="y" if down else "x", labelleft=outer, labelbottom=outer)
    if outer:
        day = f"{datetime.fromisoformat(preview.record.start_time):%Y-%m-%d}"
        time_axis.set_label_text(f"time on {day}, UTC")
    ruler = _to_km_and_back(preview)
    if down:
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.secondary_xaxis("bottom", functions=ruler).set_xlabel("distance, km")
    else:
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.secondary_yaxis("left", functions=ruler).set_ylabel("distance, km")
    channel_axis.set_label_text("channel")
    channel_axis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    _mark_dead(axes, preview)


def _to_km_and_back(preview: Preview) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From channels to kilometres, and the inverse; both go on beyond the tile."""
    channels, km = _ruler(preview)
    return partial(_line, channels, km), partial(_line, km, channels)


def _line(known: NDArray[np.float64], values: NDArray[np.float64], at: Any) -> Any:
    """Values by linear interpolation; the first and the last stretch go on beyond the ends."""
    at = np.asarray(at, dtype=np.float64)
    rising = slice(None, None, 1 if known[-1] >= known[0] else -1)
    known, values = known[rising], values[rising]
    n = np.clip(np.searchsorted(known, at, side="right") - 1, 0, known.size - 2)
    part = (at - known[n]) / (known[n + 1] - known[n])
    return values[n] + part * (values[n + 1] - values[n])


def _mark_dead(axes: Axes, preview: Preview) -> None:
    """A tick at each channel that does not live, inside the edge of the picture."""
    channels, _ = _ruler(preview)
    dead = channels[:-1][~preview.live] + (channels[1] - channels[0]) / 2
    if not dead.size:
        return
    edge = np.zeros(dead.size)
    style: dict[str, Any] = {"color": _DEAD, "markersize": 7, "linestyle": "none"}
    if _time_down(preview):
        axes.plot(dead, edge, marker=2, transform=axes.get_xaxis_transform(), **style)
    else:
        axes.plot(edge, dead, marker=1, transform=axes.get_yaxis_transform(), **style)


def _colour_bar(axes: Axes, preview: Preview, shown: Any, label: str) -> Any:
    way: Literal["horizontal", "vertical"] = "horizontal" if _time_down(preview) else "vertical"
    bar = axes.figure.colorbar(shown, cax=axes, orientation=way)
    bar.set_label(label, fontsize=8)
    axes.tick_params(labelsize=8)
    if label == "counts":
        axes.ticklabel_format(axis="both", style="sci", scilimits=(-3, 5))
    return bar


def _tell(axes: Axes, preview: Preview) -> None:
    """Words in place of pictures."""
    record = preview.record
    text = f"No image: {record.status}.\n" + "\n".join(
        textwrap.wrap(_printable(record.reason or ""), 90)
    )
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, **_PLAIN)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(_NO_DATA)


def _title(preview: Preview) -> list[str]:
    """Source, then time, place and recipe."""
    record, plan = preview.record, preview.plan
    source = _printable(preview.source)
    if len(source) > _LONGEST:
        source = f"{source[: _LONGEST // 2]} ... {source[-_LONGEST // 2 :]}"
    km = sorted((preview.distance_m[0] / 1000, preview.distance_m[-1] / 1000))
    start, end = (_clock(text) for text in (record.start_time, record.end_time))
    place = (
        f"channels {record.channel_start} to {record.channel_stop}, every {record.channel_step}   "
        f"{km[0]:.3f} to {km[1]:.3f} km"
    )
    when = f"{start} to {end.split()[1]} UTC"
    return [source, f"{when}   {place}   recipe {plan.recipe.digest[:12]}"]


def _caption(preview: Preview) -> list[str]:
    """What the numbers beside the panels mean, and what is to be known of the tile."""
    record, plan = preview.record, preview.plan
    lines = []
    if preview.steps:
        limits = "; ".join(
            f"panel {number} {_limits(step)}" for number, step in enumerate(preview.steps, 1)
        )
        inside = 100 - ROBUST_PERCENT
        lines.append(
            f"Colours run from percentile {ROBUST_PERCENT:g} to {inside:g} of the live channels' "
            f"samples, about 0 to percentile {inside:g} of their magnitude: {limits}. "
            f"{_tile_limits(preview)}"
        )
    facts = [f"Band {preview.band} of {plan.bands}, counted from 0; row {preview.row}"]
    if preview.tile is not None and record.status != Status.OK:
        facts.append(f"status {record.status}: {record.reason}")
    elif preview.tile is not None and record.reason:
        facts.append(record.reason)
    if record.dead_channels:
        facts.append(f"dead channels: {record.dead_channels} (red ticks)")
    return [*lines, "; ".join(facts) + "."]


def _limits(step: Step) -> str:
    if step.low is None or step.high is None:
        return "no live channel"
    counts = ",.0f" if step.high >= 100 else ".4g"
    digits = counts if step.unit == "counts" else ".1f"
    return f"{step.low:{digits}} to {step.high:{digits}} {step.unit}"


def _tile_limits(preview: Preview) -> str:
    record, image = preview.record, preview.plan.recipe.image
    if record.db_low is None or record.db_high is None:
        return "No channel lives: the tile is black."
    span = f"{record.db_low:.2f} to {record.db_high:.2f} dB re {image.db_reference}"
    if image.format == "npy":
        return f"The tile's levels run from {span}."
    return f"The tile's pixels run from {span} ({image.scale})."


def _time_down(preview: Preview) -> bool:
    """Whether rows of pictures are times; an array's rows are channels."""
    image = preview.plan.recipe.image
    return image.orientation == "time-down" and image.format != "npy"


def _ruler(preview: Preview) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Archive channel, and kilometres, at each kept channel's beginning and after the last."""
    record = preview.record
    channels = record.channel_start + np.arange(preview.distance_m.size) * record.channel_step
    return channels.astype(np.float64), preview.distance_m / 1000


def _extent(preview: Preview) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a picture: channels, and days as matplotlib counts them."""
    record = preview.record
    times = (datetime.fromisoformat(text) for text in (record.start_time, record.end_time))
    start, end = (float(_dates().date2num(time)) for time in times)
    if _time_down(preview):
        return record.channel_start, record.channel_stop, end, start
    return start, end, record.channel_stop, record.channel_start


def _dates() -> Any:
    """Matplotlib's dates, which have no types."""
    from matplotlib import dates

    return dates


def _clock(text: str) -> str:
    """Date and time of day, to milliseconds."""
    time = datetime.fromisoformat(text) + timedelta(microseconds=500)
    return f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}"


def _printable(text: str) -> str:
    """A text from outside, without secrets and without what no font draws."""
    return "".join(letter if letter.isprintable() else "?" for letter in redact(text))
