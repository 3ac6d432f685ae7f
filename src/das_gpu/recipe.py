"""What to compute: the recipe, its presets, TOML in and out, and its digest.

A recipe is frozen and complete. What can be refused without knowing the recording is refused
here; what needs its sampling rate or its size is refused when a recipe meets an archive.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from das_gpu.errors import RecipeError
from das_gpu.settings import (
    KEYS,
    STRAIN_KEYS,
    STRICT,
    TABLES,
    ArchiveSettings,
    ComputeSettings,
    FilterSettings,
    ImageSettings,
    MedianSettings,
    Scale,
    SelectionSettings,
    TileSettings,
    problems,
)

__all__ = [
    "ArchiveSettings",
    "ComputeSettings",
    "FilterSettings",
    "ImageSettings",
    "MedianSettings",
    "Recipe",
    "Scale",
    "SelectionSettings",
    "Setting",
    "TileSettings",
    "parse_channels",
    "parse_image_size",
    "parse_overlap",
]

Setting: TypeAlias = str | int | float | bool | None

_NOTEBOOK: dict[str, dict[str, Any]] = {
    "filter": {"method": "iir", "decimate": "before", "halo_s": 0.0},
    "median": {"kind": "time"},
    "image": {"scale": "tile", "resize": "pillow", "names": "notebook"},
    "compute": {"dtype": "float64"},
}


class Recipe(BaseModel):
    """What to compute, completely.

    The preset decides the values of the settings that are not given, and nothing else:
    ``Recipe(preset="notebook", filter={"low_hz": 10})`` has the notebook's other values.

    Raises
    ------
    RecipeError
        For an unknown setting or an impossible value, with one line per problem.

    Examples
    --------
    >>> recipe = Recipe.load("continuous", settings={"filter.low_hz": "10", "image.format": "npy"})
    >>> recipe.filter.low_hz
    10.0
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True
    """

    model_config = STRICT

    preset: Literal["continuous", "notebook"] = "continuous"
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    filter: FilterSettings = Field(default_factory=FilterSettings)
    median: MedianSettings = Field(default_factory=MedianSettings)
    tile: TileSettings = Field(default_factory=TileSettings)
    image: ImageSettings = Field(default_factory=ImageSettings)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in the preset, check table by table, and report every problem at once."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise RecipeError(f"A recipe is a table of settings; {reprlib.repr(data)} is not.")
        values: dict[str, Any] = {"preset": "continuous", **data}
        found: list[str] = []
        cause: Exception | None = None
        for name, kind in TABLES.items():
            given = values.get(name, {})
            if isinstance(given, kind):
                given = given.model_dump(exclude_unset=True)
            if isinstance(given, Mapping):
                preset = _NOTEBOOK.get(name, {}) if values["preset"] == "notebook" else {}
                given = kind().model_dump() | preset | dict(given)
            try:
                values[name] = kind.model_validate(given)
            except RecipeError as error:
                found.append(str(error))
                cause = error
                values[name] = kind.model_validate(_NOTEBOOK.get(name, {}))
        try:
            recipe = handler(values)
            found += recipe.conflicts()
        except ValidationError as error:
            found += problems(error)
            cause = error
        if found:
            raise RecipeError("\n".join(found)) from cause
        return recipe

    def conflicts(self) -> list[str]:
        """Say, a line each, which values of different tables exclude each other."""
        found = []
        notebook, png16 = self.preset == "notebook", self.image.format == "png16"
        if notebook and self.selection.channel_reduce == "mean":
            found.append("selection.channel_reduce is 'mean': the notebook preset takes 'stride'")
        if notebook and self.filter.halo_s != 0:
            found.append(f"filter.halo_s is {self.filter.halo_s!r}: the notebook preset takes 0")
        if notebook and png16:
            found.append("image.format is 'png16': the notebook preset takes 'png' or 'npy'")
        elif png16 and self.image.resize == "pillow":
            found.append("image.resize is 'pillow': it must be 'float' with image.format 'png16'")
        advice = "; or use the continuous preset." if notebook else "."
        return [line + advice for line in found]

    @classmethod
    def from_preset(cls, name: str) -> Recipe:
        """Return a preset as it is, ``continuous`` or ``notebook``."""
        return cls.model_validate({"preset": name})

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """Read a recipe from TOML; its `preset` decides what it leaves out."""
        return cls.model_validate(_read_toml(text, "The recipe"))

    @classmethod
    def load(
        cls,
        preset: str | None = None,
        config: str | Path | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> Recipe:
        """Lay a TOML file over a preset, and single settings over both.

        Parameters
        ----------
        preset : str, optional
            The base; when not given, the settings' or the file's own `preset` is.
        config : str or Path, optional
            TOML file; its times keep more than microseconds only in quotes.
        settings : mapping, optional
            Values by ``table.key``. Text is read as a TOML scalar (``10``, ``true``) where the
            setting is not itself text; None puts a setting back to its preset's value.

        Raises
        ------
        RecipeError
            When the file cannot be read, or no possible recipe comes of it.
        """
        data: dict[str, Any] = {}
        if config is not None:
            try:
                text = Path(config).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RecipeError(
                    f"The recipe file {config} cannot be read: {error}. Give the path of a TOML "
                    "file in UTF-8."
                ) from error
            data = _read_toml(text, f"The recipe file {config}")
        data = _overlaid(data, settings or {})
        return cls.model_validate(data if preset is None else data | {"preset": preset})

    def with_settings(self, settings: Mapping[str, Setting]) -> Recipe:
        """Return this recipe with settings changed, given as to `load`."""
        if "preset" in settings:
            raise RecipeError(
                "The preset of a finished recipe cannot be changed, for all its values are "
                "decided. Start from Recipe.from_preset, and set the others there."
            )
        return type(self).model_validate(_overlaid(self.model_dump(), settings))

    def to_toml(self) -> str:
        """Write every setting with its meaning; `from_toml` gives back an equal recipe."""
        import tomlkit

        document = tomlkit.document()
        document.add("preset", tomlkit.item(self.preset).comment("decides what is left out below"))
        for name, kind in TABLES.items():
            table, values = tomlkit.table(), getattr(self, name)
            for key, field in kind.model_fields.items():
                value, meaning = getattr(values, key), field.description or ""
                if value is None:
                    table.add(tomlkit.comment(f"{key} =  # {meaning}"))
                else:
                    table.add(key, tomlkit.item(value).comment(meaning))
            document.add(name, table)
        return tomlkit.dumps(document)

    @property
    def content(self) -> dict[str, Any]:
        """All settings that change an image or its name, by table, and no other."""
        content = self.model_dump()
        del content["preset"]
        if self.selection.channel_step == 1:
            del content["selection"]["channel_reduce"]
        for key in ("overlap_time", "overlap_channels"):
            if not content["tile"][key]:
                del content["tile"][key]
        if self.selection.time_step == 1:
            del content["filter"]["decimate"]
        if self.image.units == "counts":
            for table, key in STRAIN_KEYS:
                del content[table][key]
        positions = content["archive"].pop("positions")
        if positions is not None:
            content["archive"]["positions"] = hashlib.sha256(positions.encode()).hexdigest()
        if self.image.format == "npy":
            for key in ("scale", "resize", "height", "width", "orientation"):
                del content["image"][key]
        return content

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of `content`."""
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_channels(text: str) -> dict[str, int | None]:
    """Read ``START:STOP:STEP`` as settings.

    As in a slice an empty START is the first channel and an empty STOP the end; an empty STEP
    leaves the recipe's own.

    Raises
    ------
    RecipeError
        When the text is no such range, or the range is empty, descending or negative.

    Examples
    --------
    >>> parse_channels("10000::5")
    {'selection.channel_start': 10000, 'selection.channel_stop': None, 'selection.channel_step': 5}
    """
    parts = [part.strip() for part in text.split(":")]
    if not (2 <= len(parts) <= 3 and all(re.fullmatch(r"[0-9]*", part) for part in parts)):
        raise RecipeError(
            f"The channels {text!r} are no range: write START:STOP:STEP in whole numbers of at "
            "least 0, for example 10000:20000:5 or 10000::5."
        )
    start, stop, step = [*(int(part) if part else None for part in parts), None][:3]
    if step == 0:
        raise RecipeError(f"The channels {text!r} have a step of 0: it must be at least 1.")
    if stop is not None and stop <= (start or 0):
        raise RecipeError(
            f"The channels {text!r} stop at {stop}: STOP is not included and must be more than "
            f"START, {start or 0}."
        )
    found = {"selection.channel_start": start, "selection.channel_stop": stop}
    return found if step is None else found | {"selection.channel_step": step}


def parse_image_size(text: str) -> dict[str, int]:
    """Read ``HEIGHTxWIDTH`` in pixels as settings.

    Raises
    ------
    RecipeError
        When the text is no such size.

    Examples
    --------
    >>> parse_image_size("256x512")
    {'image.height': 256, 'image.width': 512}
    """
    match = re.fullmatch(r"\s*([0-9]+)\s*x\s*([0-9]+)\s*", text, re.IGNORECASE)
    if match is None:
        raise RecipeError(
            f"The image size {text!r} is not understood: write HEIGHTxWIDTH in pixels, for "
            "example 256x256."
        )
    return {"image.height": int(match[1]), "image.width": int(match[2])}


def parse_overlap(text: str) -> dict[str, float]:
    """Read ``TIME`` or ``TIME:CHANNELS``, shares of a tile, as settings.

    Raises
    ------
    RecipeError
        When the text is neither.

    Examples
    --------
    >>> parse_overlap("0.5")
    {'tile.overlap_time': 0.5}
    >>> parse_overlap("0.5:0.25")
    {'tile.overlap_time': 0.5, 'tile.overlap_channels': 0.25}
    """
    try:
        shares = [float(part) for part in text.split(":")]
        names = ("tile.overlap_time", "tile.overlap_channels")[: len(shares)]
        return dict(zip(names, shares, strict=True))
    except ValueError as error:
        raise RecipeError(
            f"The overlap {text!r} is not understood: write TIME or TIME:CHANNELS as shares of a "
            "tile from 0 to 0.9, for example 0.5 or 0.5:0.25."
        ) from error


def _read_toml(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{what} is not valid TOML: {error}. Mend that place.") from error


def _overlaid(data: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Lay settings by ``table.key`` over nested ones; unknown ones stay to be reported."""
    result = dict(data)
    for name, value in settings.items():
        target, key = result, name
        table, _, inner = name.partition(".")
        if inner and table in TABLES:
            given = result.get(table, {})
            if not isinstance(given, Mapping):
                continue  # what stands there instead of a table is reported with the rest
            target = result[table] = dict(given)
            key = inner
        if value is None and (name in KEYS or name == "preset"):
            target.pop(key, None)
        else:
            target[key] = _scalar(name, value) if isinstance(value, str) else value
    return result


def _scalar(name: str, text: str) -> object:
    """Read a text as a TOML scalar that this setting may take, or leave it as it is."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    table, _, key = name.partition(".")
    field = TABLES[table].model_fields.get(key) if table in TABLES else None
    textual = field is not None and field.annotation in (str, str | None)
    accepted = (str,) if textual else (str, bool, int, float)
    scalar = document.pop("value")
    return scalar if isinstance(scalar, accepted) and not document else text
