"""Picture files as people have them, as 8-bit RGB pixels: damaged metadata, transparency, more than 8 bits.

    decode(bytes of a file) -> PIL image, loaded;   to_rgb(image) -> RGB, on white, upright

What differs from transformers: it drops the alpha channel, so that hidden pixels show; here a picture is laid on white,
as vLLM does. Sources: PNG (W3C, third edition), sections 5.3 and 11.3; TIFF 6.0, sections 8 and 19; JPEG (ITU T.81),
annex B.
"""

import io
import logging
import re
import struct
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image
from PIL.Image import Transpose

ORIENTATION = 0x0112  # the EXIF tag: how the camera was held
TURNS = dict(zip(range(2, 9), map(Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
PNG, JPEG, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II*\0", b"MM\0*")
# of a JPEG before its pixels: bytes of FF, a marker that is neither SOS nor EOI, and a length
SEGMENT = re.compile(rb"\xff+([^\xda\xd9\xff])(..)", re.DOTALL)
MOST_METADATA = 100_000  # bytes; Pillow takes time by the square of their number
LIKELY_FULL = 1 << 14  # 16-bit levels that all stay below this are taken for 14, 12 or 10 bits in a wider file
# What people take for a picture and Pillow cannot read, by how it begins.
OTHER_KINDS = {
    rb".{4}ftyp.{0,60}?he[iv][cmsx]": "HEIC, as iPhones save photographs: save it as JPEG or PNG",
    rb".{4}ftyp(iso|mp4|M4V|qt)": "a video: save one of its frames as JPEG or PNG",
    rb"(\xff\x0a|\0\0\0\x0cJXL )": "JPEG XL: save it as JPEG or PNG",
    rb"\s*(<[?!][^<]*)*<svg": "SVG, a drawing: save it as PNG",
    rb"\s*<(!doctype )?html": "a web page: give the address of the picture that it shows",
    rb"%PDF": "a PDF: save a page of it as PNG",
}

# its words about odd files go nowhere, unless a program wants them
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Unreadable(Exception):
    """Why a file is no picture, or what its numbers mean is unknown; the text completes a sentence that begins with the
    picture's name.
    """


# ------------------------------------------------------------ the file
def decode(data: bytes) -> Image.Image:
    """The picture of a file's bytes, all pixels read. Metadata that cannot be parsed is left out; the pixels count."""
    bare, exif = without_metadata(data)
    if len(data) - len(bare) > MOST_METADATA:
        return _load(bare, exif=exif)
    try:
        return _load(data)
    except Exception:  # each of Pillow's decoders has its own way to fail
        if bare != data:
            with suppress(Exception):
                return _load(bare, exif=exif)
        for beginning, kind in OTHER_KINDS.items():
            if re.match(beginning, data[:4096], re.DOTALL | re.IGNORECASE):
                raise Unreadable(f"is {kind}") from None
        raise


def _load(data: bytes, **info) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    picture.load()
    picture.info |= info
    return picture


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """The parts that pixels need of a PNG, JPEG, TIFF or AVIF, and the EXIF block where it is apart; any other file as
    it is.
    """
    if data.startswith(PNG):
        return _bare_png(data)
    if data.startswith(JPEG):
        return _bare_jpeg(data)
    if data.startswith(TIFF):
        return _bare_tiff(data), b""
    if data[4:12] == b"ftypavif":  # the item that is called Exif becomes one of an unknown kind
        return data.replace(b"Exif", b"skip", 1), b""
    return data, b""


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, content, whole chunk) of each chunk of a PNG's bytes."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + length], data[at : at + 12 + length]
        at += 12 + length


def _bare_png(data: bytes) -> tuple[bytes, bytes]:
    pixels = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
    exif = next((content for kind, content, _ in png_chunks(data) if kind == b"eXIf"), b"")
    return PNG + b"".join(chunk for kind, _, chunk in png_chunks(data) if kind in pixels), exif


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Without APP1 to APP13, APP15 and comments: APP0 is JFIF's, APP14 Adobe's, which says how colours are coded."""
    kept, exif, at = [JPEG], b"", 2
    while segment := SEGMENT.match(data, at):
        at = segment.end(1) + int.from_bytes(segment[2], "big")
        if not exif and data.startswith(b"Exif\0\0", segment.end()):
            exif = data[segment.end() : at]
        if not re.match(rb"[\xe1-\xed\xef\xfe]", segment[1]):
            kept.append(b"\xff" + data[segment.start(1) : at])
    return b"".join([*kept, data[at:]]), exif


def _bare_tiff(data: bytes) -> bytes:
    """Its pointers to EXIF, GPS and other tables become private tags, which no one follows."""
    order, changed = "<" if data.startswith(b"I") else ">", bytearray(data)
    (first,) = struct.unpack_from(order + "I", data.ljust(8, b"\0"), 4)
    (count,) = struct.unpack_from(order + "H", data[first : first + 2].ljust(2, b"\0"))
    for at in range(first + 2, min(first + 2 + 12 * count, len(data) - 1), 12):
        (tag,) = struct.unpack_from(order + "H", data, at)
        if tag in (330, 700, 34665, 34853, 34377, 40965):  # SubIFDs, XMP, EXIF, GPS, Photoshop, Interoperability
            struct.pack_into(order + "H", changed, at, 65000)
    return bytes(changed)


# ------------------------------------------------------------ the pixels
def to_rgb(picture: Image.Image, data: bytes = b"") -> Image.Image:
    """8-bit RGB, laid on white where it is transparent, upright. `data`: the file's bytes, which may say more than PIL
    keeps.

    Raises Unreadable where the file does not say which of its levels is white, or its colours cannot be turned into
    RGB.
    """
    picture.load()
    if picture.mode.startswith(("I", "F")):
        rgb = _grey(picture, data)
    else:
        _check_wide_colours(picture, data)
        rgb = on_white(picture) if picture.has_transparency_data else _opaque(picture)
    turn = None
    with suppress(Exception):  # a picture is a picture without its metadata
        turn = TURNS.get(picture.getexif().get(ORIENTATION))
    if turn is not None:
        rgb = rgb.transpose(turn)
        rgb.info = {}  # it must not be turned again
    return rgb


def _opaque(picture: Image.Image) -> Image.Image:
    try:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except ValueError:
        kind = f"has colours of the kind {picture.mode}"
        raise Unreadable(f"{kind}, which cannot be turned into RGB: save it as a PNG") from None


def on_white(picture: Image.Image) -> Image.Image:
    """Alpha in whatever form (RGBA, LA, PA, premultiplied, a palette's or one colour's tRNS), laid on white."""
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # a 16-bit colour, of which PIL kept the upper bytes
        picture = picture.copy()
        picture.info["transparency"] = tuple(level >> 8 for level in key)
    picture = picture.convert("LA") if picture.mode == "La" else picture
    picture = picture.convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


# ------------------------------------------------------------ more than 8 bits
def _grey(picture: Image.Image, data: bytes) -> Image.Image:
    """Levels of 16 or 32 bits, or floats, as 8 bits."""
    levels = np.asarray(picture)
    white = _white_level(picture, float(levels.min(initial=0)), float(levels.max(initial=0)), data)
    if picture.mode == "F":
        grey = np.rint(levels * np.float32(255 / white))
    else:
        grey = levels.astype(np.float32) * np.float32(256 / (white + 1))  # of 16 bits, the upper byte
    grey = grey.clip(0, 255).astype(np.uint8)
    if picture.format == "TIFF" and _tag(picture, 262) == 0:  # WhiteIsZero, which PIL leaves to us in these modes
        grey = 255 - grey
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey[levels == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _white_level(picture: Image.Image, low: float, high: float, data: bytes) -> float:
    """Which level is white: what the file says, else what its kind of numbers means."""
    mode, format, stated = picture.mode, picture.format, _stated_white(picture, data)
    if low >= 0 and high < float("inf"):  # false for NaN, too
        if stated and high <= stated:
            return stated
        if high <= (mode == "F"):  # the convention of float pictures; and black is black whatever is white
            return 1.0
        if mode == "I" and format is None and high <= 255:  # made in memory of an 8-bit picture
            return 255.0
        if mode != "F" and (mode != "I" or format in (None, "PNG")) and LIKELY_FULL <= high < 65536:
            return 65535.0
    raise Unreadable(
        f"holds levels from {low:g} to {high:g}, and does not say which level is white: save it with 8 bits"
    )


def _stated_white(picture: Image.Image, data: bytes) -> float | None:
    """By a PNG's sBIT, a TIFF's SMaxSampleValue, MaxSampleValue or width; netpbm and JPEG 2000 are scaled to 16 bits by
    PIL.
    """
    if picture.format in ("PPM", "JPEG2000") and picture.mode != "F":
        return 65535.0
    if picture.format == "PNG":
        bits = next((content[0] for kind, content, _ in png_chunks(data) if kind == b"sBIT" and content), 16)
    else:
        for white in (_tag(picture, 341), _tag(picture, 281)):
            if white is not None and 0 < white < float("inf"):
                return white
        bits = _tag(picture, 258) or 16
    return 2.0**bits - 1 if bits < 16 else None


def _tag(picture: Image.Image, tag: int) -> float | None:
    """A TIFF's tag, the first of several numbers."""
    with suppress(Exception):  # no TIFF, or a tag that cannot be parsed
        return float(np.ravel(picture.tag_v2[tag])[0])


def _check_wide_colours(picture: Image.Image, data: bytes) -> None:
    """PIL keeps the upper byte of 16-bit colours, which is next to nothing where only lower bits are used."""
    wide = data[24:25] == b"\x10" if data.startswith(PNG) else _tag(picture, 258) == 16
    if wide and picture.mode in ("RGB", "RGBA", "LA"):
        edges = picture.getextrema()[: 1 if picture.mode == "LA" else 3]
        if 0 < max(high for _, high in edges) < LIKELY_FULL >> 8:
            lower = "uses only the lower of its 16 bits"
            raise Unreadable(f"{lower}, and does not say which level is white: save it with 8 bits")
