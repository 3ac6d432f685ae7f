"""Options that several commands share, and what they mean for a recipe.

Options have no defaults of their own: what is not given is left to the recipe file and the
preset. The defaults that the help names are the continuous preset's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter, validators

from das_gpu.cli.environment import MARKER
from das_gpu.errors import UsageError

if TYPE_CHECKING:
    from das_gpu.recipe import Recipe

RECIPE = Group("Recipe", sort_key=10)
ARCHIVE = Group("Archive", help="What the archive's metadata does not say.", sort_key=11)
SELECTION = Group("Selection", help="Archive indices and UTC; stops are excluded.", sort_key=12)
PROCESSING = Group("Processing", sort_key=13)
IMAGES = Group("Images", sort_key=14)
RUNNING = Group("Running", sort_key=15)
OUTPUT = Group("Output", sort_key=16)

_SETTINGS = {
    "data": "archive.data",
    "time": "archive.time",
    "sampling_rate": "archive.sampling_rate_hz",
    "channel_spacing": "archive.channel_spacing_m",
    "gauge_length": "archive.gauge_length_m",
    "channel_reduce": "selection.channel_reduce",
    "start": "selection.start",
    "stop": "selection.stop",
    "time_step": "selection.time_step",
    "low": "filter.low_hz",
    "high": "filter.high_hz",
    "order": "filter.order",
    "method": "filter.method",
    "halo": "filter.halo_s",
    "median": "median.kind",
    "tile_seconds": "tile.seconds",
    "bands": "tile.bands",
    "image_format": "image.format",
    "units": "image.units",
    "scale": "image.scale",
    "orientation": "image.orientation",
    "dtype": "compute.dtype",
}
"""Setting of each field that is one setting."""
_COMPOSITE = ("channels", "image_size", "overlap", "positions")
"""Fields that are several settings in one text, or a file of one."""

Value = str | int | float | None


def option(
    group: Group,
    text: str,
    *,
    metavar: str | None = None,
    name: str | tuple[str, ...] | None = None,
    negative: str | None = None,
) -> Parameter:
    """Describe an option: its group in the help, what it means, and what its value is called.

    ``negative`` is the option that says the contrary, for those that are neither by default.
    """
    if negative is None:
        return Parameter(name=name, group=group, help=text, metavar=metavar, negative=())
    # Without it, completion would take an optional switch for an option with a value.
    return Parameter(name=name, group=group, help=text, negative=negative, n_tokens=0)


LOADERS = Annotated[
    int | None,
    Parameter(
        group=RUNNING,
        help="Chunks asked for at a time. [default: one per processor, over a network 12]",
        metavar="N",
        validator=validators.Number(gte=1),
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class OutputOptions:
    """How results and errors are shown."""

    quiet: Annotated[
        bool,
        option(
            OUTPUT,
            "Errors only: no messages, progress or tables; the exit code tells.",
            name=("--quiet", "-q"),
        ),
    ] = False
    verbose: Annotated[
        bool,
        option(
            OUTPUT,
            "What is done, when: plan, backend, credentials (never a secret), segments, retries.",
            name=("--verbose", "-v"),
        ),
    ] = False
    json: Annotated[
        bool, option(OUTPUT, "One JSON object on stdout, an error's too; messages go to stderr.")
    ] = False
    debug: Annotated[bool, option(OUTPUT, "The traceback of an error, for a bug report.")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class ArchiveOptions:
    """How to read an archive."""

    data: Annotated[
        str | None,
        option(ARCHIVE, "Variable of the samples. [default: found by name]", metavar="NAME"),
    ] = None
    time: Annotated[
        str | None,
        option(ARCHIVE, "Variable of the times. [default: found by name]", metavar="NAME"),
    ] = None
    sampling_rate: Annotated[
        float | None,
        option(
            ARCHIVE,
            "Samples per second. [default: from the attributes, else from the time axis]",
            metavar="HZ",
        ),
    ] = None
    channel_spacing: Annotated[
        float | None,
        option(
            ARCHIVE,
            "Between channels, along the cable. [default: from the attributes, else 2.0419]",
            metavar="METRES",
        ),
    ] = None
    gauge_length: Annotated[
        float | None,
        option(ARCHIVE, "Needed for strain. [default: from the attributes]", metavar="METRES"),
    ] = None
    positions: Annotated[
        Path | None,
        option(
            ARCHIVE,
            "Where channels lie: channel, longitude, latitude, perhaps distance_m, as CSV.",
            metavar="FILE",
        ),
    ] = None
    from_environment: Annotated[
        tuple[str, ...], Parameter(name=MARKER, show=False, group=ARCHIVE)
    ] = ()

    def recipe(self) -> Recipe:
        """The recipe that these options come to."""
        from das_gpu.recipe import Recipe

        return Recipe.load(settings=self._settings())

    def _settings(self) -> dict[str, Value]:
        """Settings by ``table.key``: of the environment first, then of the command line."""
        fields = [
            name for name in (*_SETTINGS, *_COMPOSITE) if getattr(self, name, None) is not None
        ]
        outer = [name for name in fields if _flag(name) in self.from_environment]
        inner = [name for name in fields if name not in outer]
        return self._of(outer) | self._single() | self._of(inner)

    def _single(self) -> dict[str, Value]:
        """Settings given one by one."""
        return {}

    def _of(self, fields: Sequence[str]) -> dict[str, Value]:
        from das_gpu.positions import read
        from das_gpu.recipe import parse_channels, parse_image_size, parse_overlap

        settings: dict[str, Value] = {}
        for name in fields:
            value = getattr(self, name)
            if name == "channels":
                settings |= parse_channels(value)
            elif name == "image_size":
                settings |= parse_image_size(value)
            elif name == "positions":
                settings["archive.positions"] = read(value)
            elif name == "overlap":
                settings |= parse_overlap(value)
            else:
                settings[_SETTINGS[name]] = value
        return settings


@Parameter(name="*")
@dataclass(frozen=True)
class RecipeOptions(ArchiveOptions):
    """What to compute."""

    preset: Annotated[
        Literal["continuous", "notebook"] | None,
        option(RECIPE, "What all other settings start from. [default: continuous]"),
    ] = None
    config: Annotated[
        Path | None,
        option(RECIPE, "Recipe file (TOML), as `das-gpu recipe` prints it.", metavar="FILE"),
    ] = None
    set_: Annotated[
        tuple[str, ...],
        option(
            RECIPE,
            "Any setting of `das-gpu recipe`; may be repeated.",
            metavar="SECTION.KEY=VALUE",
            name="--set",
        ),
    ] = ()
    channels: Annotated[
        str | None,
        option(
            SELECTION, "Which; each part may be empty. [default: 0::5]", metavar="START:STOP:STEP"
        ),
    ] = None
    channel_reduce: Annotated[
        Literal["stride", "mean"] | None,
        option(SELECTION, "First or mean of each STEP channels. [default: stride]"),
    ] = None
    start: Annotated[
        str | None,
        option(SELECTION, "First time, as 2021-11-02T06:00. [default: the first]", metavar="UTC"),
    ] = None
    stop: Annotated[
        str | None,
        option(SELECTION, "Time to stop before. [default: the record's end]", metavar="UTC"),
    ] = None
    time_step: Annotated[
        int | None,
        option(SELECTION, "Keep one in so many samples. [default: 2]", metavar="N"),
    ] = None
    low: Annotated[
        float | None, option(PROCESSING, "Lower corner. [default: 14]", metavar="HZ")
    ] = None
    high: Annotated[
        float | None, option(PROCESSING, "Upper corner. [default: 35]", metavar="HZ")
    ] = None
    order: Annotated[
        int | None,
        option(PROCESSING, "Butterworth order, 1 to 16. [default: 8]", metavar="N"),
    ] = None
    method: Annotated[
        Literal["spectral", "iir"] | None,
        option(
            PROCESSING,
            "By FFT, or second-order sections both ways. [default: spectral]",
            name="--filter",
        ),
    ] = None
    halo: Annotated[
        str | None,
        option(
            PROCESSING, "Read on either side of a tile, or auto. [default: auto]", metavar="SECONDS"
        ),
    ] = None
    median: Annotated[
        Literal["auto", "channel", "time", "none"] | None,
        option(
            PROCESSING, "Subtract the median over channels, or each channel's own. [default: auto]"
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        option(PROCESSING, "Precision of all arithmetic. [default: float32]"),
    ] = None
    tile_seconds: Annotated[
        float | None,
        option(IMAGES, "Duration of a tile. [default: 15]", metavar="SECONDS"),
    ] = None
    bands: Annotated[
        int | None,
        option(IMAGES, "Tiles side by side along the cable. [default: 10]", metavar="N"),
    ] = None
    overlap: Annotated[
        str | None,
        option(
            IMAGES,
            "Share of a tile that the next repeats, to 0.9. [default: 0:0]",
            metavar="TIME[:CHANNELS]",
        ),
    ] = None
    image_format: Annotated[
        Literal["png", "png16", "npy"] | None,
        option(
            IMAGES,
            "8 or 16 bits, or dB as float32 before resizing. [default: png]",
            name="--format",
        ),
    ] = None
    scale: Annotated[
        str | None,
        option(
            IMAGES,
            "percentile:P, tile (min-max) or fixed:LOW:HIGH, dB. [default: percentile:0.5]",
            metavar="SCALE",
        ),
    ] = None
    units: Annotated[
        Literal["counts", "strain"] | None,
        option(IMAGES, "Levels in dB re 1e-6 count, or re 1 strain. [default: counts]"),
    ] = None
    image_size: Annotated[
        str | None,
        option(IMAGES, "Pixels. [default: 256x256]", metavar="HEIGHTxWIDTH"),
    ] = None
    orientation: Annotated[
        Literal["time-down", "time-right"] | None,
        option(IMAGES, "Which way time runs. [default: time-down]"),
    ] = None

    def recipe(self) -> Recipe:
        """Lay the options over the environment, the recipe file and the preset."""
        from das_gpu.recipe import Recipe

        return Recipe.load(preset=self.preset, config=self.config, settings=self._settings())

    def _single(self) -> dict[str, Value]:
        settings: dict[str, Value] = {}
        for text in self.set_:
            key, found, value = text.partition("=")
            if not found or not key.strip():
                raise UsageError(
                    f"--set {text} is not understood: write SECTION.KEY=VALUE, for example "
                    "--set filter.low_hz=10. `das-gpu recipe` prints every setting."
                )
            settings[key.strip()] = value.strip()
        return settings


def _flag(field: str) -> str:
    """The flag of a field."""
    special = {"method": "--filter", "image_format": "--format"}
    return special.get(field, f"--{field.replace('_', '-')}")
