"""Pixels to PNG and back, times to names."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from das_gpu import render

FIRST_NS = 1635808274834000000  # 2021-11-01T23:11:14.834
NS_PER_DAY = 86_400 * 10**9

shapes = st.tuples(st.integers(1, 300), st.integers(1, 300))
depths = st.sampled_from([np.uint8, np.uint16])


def decode(data):
    """Pixels as Pillow reads them, in the depth they were written in."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image)


def noise(shape, dtype, seed=0):
    """Every byte value is about equally likely."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 2), (256, 256), (117, 300)])
def test_png_decodes_to_the_same_pixels_and_depth(dtype, shape):
    pixels = noise(shape, dtype)

    decoded = decode(render.encode_png(pixels))

    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, pixels)


@settings(max_examples=40)
@given(data=st.data(), shape=shapes, dtype=depths)
def test_png_of_any_shape_and_content(data, shape, dtype):
    # A few values repeated at many places, so that flat runs and jumps both occur.
    pixels = data.draw(hnp.arrays(dtype, shape, fill=st.integers(0, np.iinfo(dtype).max)))

    np.testing.assert_array_equal(decode(render.encode_png(pixels)), pixels)


@given(seed=st.integers(0, 2**32 - 1), shape=shapes, dtype=depths)
def test_png_of_noise_of_any_shape(seed, shape, dtype):
    pixels = noise(shape, dtype, seed)

    np.testing.assert_array_equal(decode(render.encode_png(pixels)), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_does_not_depend_on_memory_layout_or_byte_order(dtype):
    pixels = noise((40, 30), dtype)
    expected = render.encode_png(pixels)

    assert render.encode_png(np.asfortranarray(pixels)) == expected
    assert render.encode_png(noise((80, 60), dtype)[::2, ::2].copy()) == render.encode_png(
        noise((80, 60), dtype)[::2, ::2]
    )
    assert render.encode_png(pixels.astype(np.dtype(dtype).newbyteorder(">"))) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opencv_reads_the_same_pixels(dtype):
    cv2 = pytest.importorskip("cv2")
    pixels = noise((256, 200), dtype)

    data = np.frombuffer(render.encode_png(pixels), dtype=np.uint8)

    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), pixels)


def test_the_same_pixels_are_the_same_bytes_on_every_thread():
    images = [noise((256, 256), np.uint8, seed) for seed in range(20)]
    expected = [render.encode_png(image) for image in images]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert list(pool.map(render.encode_png, images)) == expected


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((0, 5), np.uint8),
        np.zeros((2, 2), np.int16),
    ],
)
def test_png_refuses_what_is_not_a_greyscale_image(pixels):
    with pytest.raises(ValueError, match="height, width"):
        render.encode_png(pixels)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)))
def test_npy_round_trip(db):
    back = np.load(io.BytesIO(render.encode_npy(db)), allow_pickle=False)

    assert back.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(back, db)
    assert render.encode_npy(np.asfortranarray(db)) == render.encode_npy(db)


def test_npy_refuses_another_dtype():
    with pytest.raises(ValueError, match="float64"):
        render.encode_npy(np.zeros((2, 3)))


def name(style="plain", start_ns=FIRST_NS, channel=10000, distance_m=20419.0, suffix="png"):
    return render.file_name(
        style, start_ns=start_ns, channel=channel, distance_m=distance_m, suffix=suffix
    )


def test_names_of_the_two_recipes():
    assert name() == "images/2021-11-01/23/20211101T231114834Z_ch10000.png"
    assert name("notebook") == "images/2021-11-01T23:11:14.834000000_start20419.0.png"
    assert name(channel=7, suffix="npy") == "images/2021-11-01/23/20211101T231114834Z_ch00007.npy"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("2021-11-01T23:11:14.833999000", "images/2021-11-01/23/20211101T231114834Z"),
        ("2021-11-01T23:11:14.834499999", "images/2021-11-01/23/20211101T231114834Z"),
        ("2021-11-01T23:11:14.834500000", "images/2021-11-01/23/20211101T231114835Z"),
        ("2021-11-01T22:59:59.999600000", "images/2021-11-01/23/20211101T230000000Z"),
        ("2021-12-31T23:59:59.999999999", "images/2022-01-01/00/20220101T000000000Z"),
        ("1969-12-31T23:59:59.999999999", "images/1970-01-01/00/19700101T000000000Z"),
    ],
)
def test_plain_names_round_to_milliseconds_and_the_folder_follows(start, expected):
    start_ns = int(np.datetime64(start, "ns").astype(np.int64))

    assert name(start_ns=start_ns) == f"{expected}_ch10000.png"


@given(st.integers(0, 47_499), st.integers(-(2**62), 2**62))
def test_notebook_names_are_the_texts_of_numpy_and_python(channel, start_ns):
    distance_m = 2.0419 * channel

    assert name("notebook", start_ns=start_ns, distance_m=np.float64(distance_m)) == (
        f"images/{np.datetime64(start_ns, 'ns')!s}_start{distance_m!s}.png"
    )


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_iso_utc_is_exact(time_ns):
    text = render.iso_utc(time_ns)

    assert text.endswith("Z")
    assert int(np.datetime64(text[:-1], "ns").astype(np.int64)) == time_ns
    assert len(text) == len("2021-11-01T23:11:14.834000Z") + (3 if time_ns % 1000 else 0)


@given(st.integers(-NS_PER_DAY * 10_000, NS_PER_DAY * 40_000))
def test_split_key_is_the_utc_hour(time_ns):
    # Floored to whole microseconds, which cannot carry into the next hour.
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)

    assert render.split_key(time_ns) == time.strftime("%Y-%m-%dT%H")


@pytest.mark.parametrize("highest", [255, 65535])
def test_level_db_inverts_the_grey_scale(highest):
    low, high = 92.25, 131.75
    db = np.linspace(low, high, 1000)
    pixels = np.rint((db - low) / (high - low) * highest).astype(np.uint16)

    back = render.level_db(pixels, low, high, highest)

    assert np.abs(back - db).max() <= 0.5 * (high - low) / highest * (1 + 1e-9)
    assert render.level_db(0, low, high, highest) == low
    assert render.level_db(highest, low, high, highest) == pytest.approx(high, rel=1e-15)
