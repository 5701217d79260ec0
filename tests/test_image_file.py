"""Picture files as people have them: damaged metadata, transparency, more than 8 bits, each made here."""

import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from minillava.errors import UserError
from minillava.inputs.image import open_image, preprocess
from minillava.inputs.image_file import PNG, png_chunks

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def encoded(picture, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes, tmp_path):
    """As chat.py reads it; Pillow must not say a word."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return open_image(path)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(data: bytes, kind: bytes, content: bytes, damaged: bool = False) -> bytes:
    """A PNG with one chunk more, after IHDR; damaged: its checksum is wrong."""
    new = chunk(kind, content)
    return data[:33] + (new[:-4] + b"\0\0\0\0" if damaged else new) + data[33:]


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """A JPEG with one segment more, at its start."""
    return data[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def orientation(value: int, entries: int = 1, tail: bytes = b"\0\0\0\0") -> bytes:
    """An EXIF block whose table holds one entry, and claims to hold `entries`."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", entries, 0x0112, 3, 1, value, 0) + tail


# ------------------------------------------------------------ metadata
GARBAGE = [
    b"",
    b"Exif",
    b"Exif\0\0",
    b"Exif\0\0MM",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"nonsense" * 9,
    orientation(99),
    orientation(6)[:17],
]


@pytest.mark.parametrize("exif", GARBAGE, ids=range(len(GARBAGE)))
def test_exif_that_cannot_be_parsed_is_ignored(exif, tmp_path):
    assert np.array_equal(read(with_chunk(encoded(NOISE), b"eXIf", exif), tmp_path), NOISE)
    photo = encoded(NOISE, "JPEG")
    assert np.array_equal(read(with_segment(photo, 0xE1, exif), tmp_path), Image.open(io.BytesIO(photo)))
    assert np.array_equal(read(encoded(NOISE, "WEBP", lossless=True, exif=exif or b"\0"), tmp_path), NOISE)
    made = Image.Exif()
    made[271] = "a maker of cameras" * 3
    avif = encoded(NOISE, "AVIF", exif=made)
    at = avif.index(b"MM\0*")  # Pillow writes its own block
    spoiled = avif[:at] + exif[6:].ljust(60, b"\0")[:60] + avif[at + 60 :]
    assert sorted(read(spoiled, tmp_path).size) == [4, 6]


def test_exif_at_random_never_costs_a_picture(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(30):
        exif = b"Exif\0\0" + (b"II*\0" if rng.random() < 0.5 else b"MM\0*") + rng.bytes(60)
        for data in (with_chunk(encoded(NOISE), b"eXIf", exif[6:]), with_segment(encoded(NOISE, "JPEG"), 0xE1, exif)):
            assert sorted(read(data, tmp_path).size) == [4, 6]


@pytest.mark.parametrize("exif", [orientation(6), orientation(6, 20), orientation(6, 20, b"\x01\x0f\0\x02\xff\xff")])
def test_orientation_is_kept_where_it_can_be_read(exif, tmp_path):
    turned = NOISE.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(read(with_chunk(encoded(NOISE), b"eXIf", exif[6:]), tmp_path), turned)
    assert np.array_equal(
        read(with_chunk(with_chunk(encoded(NOISE), b"tEXt", b"a", True), b"eXIf", exif[6:]), tmp_path), turned
    )
    assert read(with_segment(encoded(NOISE, "JPEG"), 0xE1, exif), tmp_path).size == turned.size


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "MPO"])
def test_every_orientation_and_only_once(kind, value, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = value
    more = {"WEBP": {"lossless": True}, "MPO": {"save_all": True, "append_images": [NOISE]}}.get(kind, {})
    picture = read(encoded(NOISE, kind, exif=exif, **more), tmp_path)
    turn = [None, None, *map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2))][value]
    expected = NOISE if turn is None else NOISE.transpose(turn)
    assert picture.size == expected.size and np.abs(np.asarray(picture).astype(int) - expected).mean() < (
        60 if kind in ("JPEG", "MPO") else 1e-9
    )
    assert open_image(picture) is picture


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME", b"gAMA", b"pHYs", b"acTL"])
@pytest.mark.parametrize("damaged", [True, False])
def test_chunks_that_no_pixel_needs(kind, damaged, tmp_path):
    for content in (b"", b"\0", b"name\0\0" + zlib.compress(b"a" * 5_000_000), b"\xff" * 40):
        assert np.array_equal(read(with_chunk(encoded(NOISE), kind, content, damaged), tmp_path), NOISE)


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_segments_that_no_pixel_needs(marker, tmp_path):
    for content in (
        b"",
        b"MPF\0" + b"\xff" * 20,
        b"ICC_PROFILE\0\xff\xff",
        b"Photoshop 3.0\x008BIM\xff\xff",
        b"http://ns.adobe.com/xap/1.0/\0<x:",
    ):
        assert read(with_segment(encoded(NOISE, "JPEG"), marker, content), tmp_path).size == NOISE.size


def test_tables_of_a_tiff_that_lead_nowhere(tmp_path):
    tags = ImageFileDirectory_v2()
    tags[0x8769], tags[0x8825] = {0x9003: "2020"}, {1: "N"}
    data = bytearray(encoded(NOISE, "TIFF", tiffinfo=tags))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at)[0] in (0x8769, 0x8825):
            struct.pack_into("<I", data, at + 8, len(data) - 3)
    assert np.array_equal(read(bytes(data), tmp_path), NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, while it writes
        numbers = ImageFileDirectory_v2()
        numbers[700], numbers.tagtype[700] = (1, 2, 3), 4  # XMP that is no text
        data = encoded(NOISE, "TIFF", tiffinfo=numbers)
    assert np.array_equal(read(data, tmp_path), NOISE)


def test_time_does_not_grow_by_the_square_of_the_metadata(tmp_path):
    """Files of 1 to 2 MB, each of which would take more than 10 seconds; of 20 MB, hundreds of times as long."""
    began = time.process_time()
    data = with_chunk(encoded(NOISE), b"eXIf", b"II*\0", damaged=True)
    at = data.index(b"IDAT") - 4
    assert np.array_equal(read(data[:at] + chunk(b"IDAT", b"") * 150_000 + data[at:], tmp_path), NOISE)
    photo = encoded(NOISE, "JPEG")
    segments = with_segment(b"", 0xE1, orientation(6)) + with_segment(b"", 0xE1, b"Exif\0\0" + b"a" * 4) * 250_000
    assert read(photo[:2] + segments + photo[2:], tmp_path).size == (4, 6)
    assert time.process_time() - began < 6


def test_a_picture_that_is_cut_is_still_refused(tmp_path):
    with pytest.raises(UserError, match="cut short"):
        read(with_segment(encoded(NOISE.resize((90, 90)), "JPEG"), 0xE1, b"Exif\0\0")[:900], tmp_path)


# ------------------------------------------------------------ transparency
HIDDEN = np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [0, 0, 255, 255]]], np.uint8)
SEEN = [[255, 255, 255], [255, 127, 127], [0, 0, 255]]


def row(picture) -> list:
    return np.asarray(picture)[0].tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "ICO", "TGA", "JPEG2000", "APNG"])
def test_a_transparent_picture_lies_on_white(kind, tmp_path):
    picture = Image.fromarray(HIDDEN)
    frames = {"save_all": True, "append_images": [NOISE.convert("RGBA").resize((3, 1))]}
    more = {"WEBP": {"lossless": True, "exact": True}, "APNG": frames}.get(kind, {})
    assert row(read(encoded(picture, kind.removeprefix("A"), **more), tmp_path)) == SEEN
    assert row(open_image(picture)) == SEEN


def test_every_way_to_be_transparent(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 255, 0, 0, 0, 0, 255])
    grey = Image.fromarray(np.array([[7, 8, 9]], np.uint8))
    colours = Image.fromarray(HIDDEN[..., :3])
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert row(read(encoded(palette, transparency=b"\0\x80\xff"), tmp_path)) == SEEN
    assert row(read(encoded(palette, transparency=b"\0"), tmp_path)) == [[255, 255, 255], [255, 0, 0], [0, 0, 255]]
    for kind in ("PNG", "GIF"):
        assert row(read(encoded(palette, kind, transparency=2), tmp_path)) == [
            [255, 0, 0],
            [255, 0, 0],
            [255, 255, 255],
        ]
    assert row(read(encoded(grey, transparency=8), tmp_path)) == [[7] * 3, [255] * 3, [9] * 3]
    assert row(read(encoded(colours, transparency=(0, 0, 255)), tmp_path)) == [
        [255, 0, 0],
        [255, 0, 0],
        [255, 255, 255],
    ]
    assert row(read(encoded(deep, transparency=32768), tmp_path)) == [[0] * 3, [255] * 3, [255] * 3]
    assert (
        row(read(encoded(grey.point(lambda level: 255 * (level == 8)).convert("1"), transparency=0), tmp_path))
        == [[255] * 3] * 3
    )
    ink = Image.fromarray(np.array([[[0, 0], [0, 255]]], np.uint8), "LA")
    for picture in (
        ink,
        ink.convert("RGBA"),
        ink.convert("La"),
        ink.convert("RGBA").convert("RGBa"),
        ink.convert("RGBA").convert("PA"),
    ):
        assert row(open_image(picture)) == [[255] * 3, [0] * 3], picture.mode


def test_hidden_pixels_do_not_reach_the_model():
    red, blue = (open_image(Image.new("RGBA", (5, 5), (*colour, 0))) for colour in ((255, 0, 0), (0, 0, 255)))
    assert (preprocess(red, 14) == preprocess(blue, 14)).all() and (
        preprocess(red, 14) == preprocess(Image.new("RGB", (5, 5), "white"), 14)
    ).all()


# ------------------------------------------------------------ more than 8 bits
def levels(*values, kind=np.uint16):
    return Image.fromarray(np.array([values], kind))


def greys(picture) -> list:
    assert picture.mode == "RGB"
    return np.asarray(picture)[0, :, 0].tolist()


def test_levels_are_scaled_by_what_the_file_says(tmp_path):
    twelve = levels(0, 2048, 4095)
    assert greys(read(with_chunk(encoded(twelve), b"sBIT", b"\x0c"), tmp_path)) == [0, 128, 255]
    assert greys(read(encoded(twelve, "TIFF", tiffinfo={281: 4095}), tmp_path)) == [0, 128, 255]
    assert greys(read(b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095), tmp_path)) == [0, 128, 255]
    assert greys(read(encoded(levels(0, 50, 200, kind=np.float32), "TIFF", tiffinfo={341: 200.0}), tmp_path)) == [
        0,
        64,
        255,
    ]
    assert greys(
        read(encoded(levels(0, 2**19, 2**20 - 1, kind=np.int32), "TIFF", tiffinfo={341: 2**20 - 1}), tmp_path)
    ) == [0, 128, 255]
    full = levels(0, 255, 256, 32768, 65535)
    for kind in ("PNG", "TIFF", "PPM"):
        assert greys(read(encoded(full, kind), tmp_path)) == [0, 0, 1, 128, 255]
    assert greys(read(encoded(levels(0, 0.5, 1, kind=np.float32), "TIFF"), tmp_path)) == [0, 128, 255]
    for kind in (np.uint16, np.int32, np.float32):
        assert greys(read(encoded(levels(0, 0, kind=kind), "TIFF"), tmp_path)) == [0, 0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("black", [0, 1])
def test_either_byte_order_and_either_end_white(order, black, tmp_path):
    data = encoded(levels(0, 32768, 65535), "TIFF")
    if order == ">":
        data = encoded(Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 32768, 65535)), "TIFF")
    entry = struct.pack(order + "HHI", 262, 3, 1)
    at = data.index(entry) + len(entry)
    data = data[:at] + struct.pack(order + "H", black) + data[at + 2 :]
    if order == ">" and not black:  # which PIL cannot read
        with pytest.raises(UserError):
            read(data, tmp_path)
        return
    assert greys(read(data, tmp_path)) == ([0, 128, 255] if black else [255, 127, 0])


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (levels(0, 2000, 4095), "from 0 to 4095,"),
        (levels(0, 200), "does not say which level is white"),
        (levels(0, 2**30, kind=np.int32), "to 1.07374e"),
        (levels(0, 255, kind=np.int32), "to 255,"),
        (levels(-5, 255, kind=np.int32), "from -5 to 255"),
        (levels(0, 255, kind=np.float32), "to 255,"),
        (levels(-1, 1, kind=np.float32), "from -1 to 1"),
        (levels(0, np.nan, 1, kind=np.float32), "nan"),
        (levels(0, np.inf, kind=np.float32), "to inf"),
    ],
)
def test_levels_of_unknown_meaning_are_refused(picture, says, tmp_path):
    with pytest.raises(UserError, match=says):
        read(encoded(picture, "TIFF"), tmp_path)


@pytest.mark.parametrize("colours", [2, 4, 6])
def test_wide_colours(colours, tmp_path):
    """PIL reads 16-bit colours as 8-bit ones; with 12 bits used they would be black."""

    def png(*values):
        channels = {2: 3, 4: 2, 6: 4}[colours]
        pixels = [level for value in values for level in [value] * (channels - (colours > 2)) + [65535] * (colours > 2)]
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, 16, colours, 0, 0, 0))
        return (
            PNG
            + header
            + chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(pixels)}H", *pixels)))
            + chunk(b"IEND", b"")
        )

    assert greys(read(png(0, 32768, 65535), tmp_path)) == [0, 128, 255] and greys(read(png(0, 0), tmp_path)) == [0, 0]
    with pytest.raises(UserError, match="lower of its 16 bits"):
        read(png(0, 2000, 4095), tmp_path)


def test_chunks_are_found():
    assert [kind for kind, _, _ in png_chunks(encoded(NOISE))] == [b"IHDR", b"IDAT", b"IEND"]
