"""Small HDF5 recordings in the layouts of interrogators, made of arrays a test chose itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tests.archives import START_NS, clock_us

RATE_HZ = 200.0
SPACING_M = 2.0


def write_prodml(
    path: Path,
    samples: NDArray[Any],
    first_sample: int = 0,
    *,
    time_first: bool = True,
    times_us: NDArray[np.int64] | None = None,
    gauge_length_m: float = 51.0,
    **storage: Any,
) -> Path:
    """Write samples (channel, sample) as OptaSense's interrogators do.

    ``first_sample`` counts periods since the recording's beginning; ``storage`` is h5py's.
    """
    n = samples.shape[1]
    if times_us is None:
        times_us = clock_us(first_sample + n, RATE_HZ)[first_sample:]
    with h5py.File(path, "w") as file:
        acquisition = file.create_group("Acquisition")
        acquisition.attrs.update(
            {
                "GaugeLength": gauge_length_m,
                "PulseWidth": 100.0,
                "PulseRate": 1000.0,
                "NumberOfLoci": samples.shape[0],
                "SpatialSamplingInterval": SPACING_M,
                "schemaVersion": b"2.0",
                "uuid": path.name,
            }
        )
        raw = acquisition.create_group("Raw[0]")
        raw.attrs["OutputDataRate"] = RATE_HZ
        data = raw.create_dataset("RawData", data=samples.T if time_first else samples, **storage)
        data.attrs["Dimensions"] = ["time", "locus"] if time_first else ["locus", "time"]
        raw["RawDataTime"] = times_us
        raw["RawDataSampleCount"] = np.arange(first_sample, first_sample + n)
        raw["GpsStatus"] = np.full(n, 2, np.uint8)
    return path


def write_series(
    folder: Path, samples: NDArray[Any], lengths: Sequence[int], **options: Any
) -> list[Path]:
    """Cut samples (channel, sample) into files of these lengths, without a gap."""
    folder.mkdir(parents=True, exist_ok=True)
    files, first = [], 0
    for number, length in enumerate(lengths):
        part = samples[:, first : first + length]
        files.append(write_prodml(folder / f"part{number:04d}.h5", part, first, **options))
        first += length
    return files


def write_terra15(path: Path, samples: NDArray[Any], first_sample: int = 0) -> Path:
    """Write samples (channel, sample) as Terra15's interrogators do, format 6."""
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {
                "acoustic_bandwidth_end": 100.0,
                "amplifier_incoming_current": 1.0,
                "file_start_computer_time": START_NS / 1e9,
                "file_version": "6",
                "data_product": "velocity",
                "data_product_units": "m/s",
                "gauge_length": 10.0,
                "sensing_range_start": 0.0,
                "dx": SPACING_M,
                "nx": samples.shape[0],
            }
        )
        product = file.create_group("data_product")
        product["data"] = samples.T
        product["gps_time"] = (
            START_NS / 1e9 + (first_sample + np.arange(samples.shape[1])) / RATE_HZ
        )
    return path


def write_silixa(path: Path, samples: NDArray[Any], first_sample: int = 0) -> Path:
    """Write samples (channel, sample) as Silixa's interrogators do."""
    start = np.datetime64(START_NS + round(first_sample * 1e9 / RATE_HZ), "ns")
    date, clock = np.datetime_as_string(start, unit="us").split("T")
    text = f"{'/'.join(reversed(date.split('-')))} {clock}"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("Acoustic", data=samples.T)
        data.attrs.update(
            {
                "GaugeLength": 10.0,
                "SamplingFrequency[Hz]": RATE_HZ,
                "Fibre Length Multiplier": 1.0,
                "Start Distance (m)": 0.0,
                "Stop Distance (m)": SPACING_M * samples.shape[0],
                "Fibre Length per Metre": 1.0,
                "GPSTimeStamp": text,
                "CPUTimeStamp": text,
                "Tags": "",
                "PulseWidth[ns]": 100.0,
                "MeasureLength[m]": 0.0,
                "StartPosition[m]": 0.0,
                "SpatialResolution[m]": SPACING_M,
                "SystemInfomation.Devices1.SerialNum": "1",
            }
        )
    return path


def write_dasdae(path: Path, samples: NDArray[Any], first_sample: int = 0) -> Path:
    """Let DASCore write samples (channel, sample) in its own format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dascore

        start = np.datetime64(START_NS + round(first_sample * 1e9 / RATE_HZ), "ns")
        times = start + np.arange(samples.shape[1]) * np.timedelta64(round(1e9 / RATE_HZ), "ns")
        coords = {"distance": np.arange(samples.shape[0]) * SPACING_M, "time": times}
        patch = dascore.Patch(data=samples, coords=coords, dims=("distance", "time"))
        dascore.write(patch, str(path), "dasdae")
    return path
