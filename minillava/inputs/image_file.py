"""Picture files as people have them, as 8-bit RGB pixels: damaged metadata, transparency, more than 8 bits.

    decode(bytes of a file) -> PIL image, loaded;   to_rgb(image) -> RGB, on white, upright

What differs from transformers: it drops the alpha channel, so that hidden pixels show; here a picture is laid on white,
as vLLM does. Sources: PNG (W3C, third edition), sections 5.3 and 11.3; TIFF 6.0, sections 8 and 19; JPEG (ITU T.81),
annex B."""

import io
import logging
import struct

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag: how the camera was held
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
LIKELY_FULL = 1 << 14  # 16-bit levels that all stay below this are taken for 14, 12 or 10 bits in a wider file

# its words about odd files go nowhere, unless a program wants them
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnclearPixels(Exception):
    """The file does not say what its numbers mean; the text completes a sentence that begins with the picture's name."""


# ------------------------------------------------------------ the file
def decode(data: bytes) -> Image.Image:
    """The picture of a file's bytes, all pixels read. Metadata that cannot be parsed is left out; the pixels count."""
    try:
        return _load(data)
    except Image.DecompressionBombError:
        raise
    except Exception as error:  # each of Pillow's decoders has its own way to fail
        bare, exif = without_metadata(data)
        try:
            if bare == data:
                raise error
            picture = _load(bare)
        except Exception:
            raise error from None
        picture.info["exif"] = exif
        return picture


def _load(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    picture.load()
    return picture


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """The parts that pixels need of a PNG, JPEG, TIFF or AVIF, and the EXIF block where it is apart; any other file as
    it is.
    """
    if data.startswith(PNG):
        return _bare_png(data)
    if data.startswith(JPEG):
        return _bare_jpeg(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _bare_tiff(data), b""
    if data[4:12] == b"ftypavif":  # the item that is called Exif becomes one of an unknown kind
        return data.replace(b"Exif", b"skip", 1), b""
    return data, b""


def png_chunks(data: bytes):
    """Yield (kind, content, whole chunk) of a PNG's bytes."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length], data[at : at + 12 + length]
        at += 12 + length


def _bare_png(data: bytes) -> tuple[bytes, bytes]:
    bare, exif = PNG, b""
    for kind, content, chunk in png_chunks(data):
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            bare += chunk
        elif kind == b"eXIf":
            exif = content
    return bare, exif


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Without APP1 to APP13, APP15 and comments: APP0 is JFIF's, APP14 Adobe's, which says how colours are coded."""
    bare, exif, at = [JPEG], b"", 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda", b"\xd9"):
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            bare.append(data[at:end])
        elif data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : end]
        at = end
    return b"".join([*bare, data[at:]]), exif


def _bare_tiff(data: bytes) -> bytes:
    """Its pointers to EXIF, GPS and other tables become private tags, which no one follows."""
    order, changed = "<" if data[:1] == b"I" else ">", bytearray(data)
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

    Raises UnclearPixels where the file does not say which of its levels is white, or its colours cannot be turned into
    RGB."""
    picture.load()
    turn = TURNS.get(orientation(picture))
    if picture.mode.startswith(("I", "F")):
        picture = _grey(picture, data)
    else:
        _check_wide_colours(picture, data)
        try:
            picture = on_white(picture) if picture.has_transparency_data else _opaque(picture)
        except ValueError:
            raise UnclearPixels(
                f"has colours of the kind {picture.mode}, which cannot be turned into RGB: save it as a PNG"
            ) from None
    if turn is not None:
        picture = picture.transpose(turn)
        picture.info = {}  # it must not be turned again
    return picture


def orientation(picture: Image.Image) -> int | None:
    """What EXIF says, if it can be read."""
    try:
        value = picture.getexif().get(ORIENTATION)
    except Exception:  # a picture is a picture without its metadata
        return None
    return value if isinstance(value, int) else None


def _opaque(picture: Image.Image) -> Image.Image:
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
    white = _white_level(picture, levels, data)
    if picture.mode == "F":
        grey = np.rint(levels * np.float32(255 / white))
    else:
        grey = levels.astype(np.float32) * np.float32(256 / (white + 1))  # of 16 bits, the upper byte
    grey = grey.clip(0, 255).astype(np.uint8)
    if _tag(picture, 262) == 0 and picture.format == "TIFF":  # WhiteIsZero, which PIL leaves to us in these modes
        grey = 255 - grey
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey[levels == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _white_level(picture: Image.Image, levels: np.ndarray, data: bytes) -> float:
    """Which level is white: what the file says, else what its kind of numbers means."""
    if not np.isfinite(levels).all():
        raise UnclearPixels("holds levels that are no numbers (NaN or infinity)")
    low, high = (float(edge) for edge in (levels.min(initial=0), levels.max(initial=0)))
    if low < 0:
        raise UnclearPixels("holds negative levels, and does not say which level is black: save it with 8 bits")
    stated = _stated_white(picture, data)
    if stated is not None and high <= stated:
        return stated
    if picture.mode == "F":
        if high <= 1:  # the convention of float pictures
            return 1.0
        raise UnclearPixels(
            f"holds floats up to {high:g}, and does not say which level is white: scale it to 0 to 1, or save it with 8 bits"
        )
    if picture.mode == "I" and high <= 255 and picture.format is None:  # made in memory of an 8-bit picture
        return 255.0
    width = 16 if (picture.mode != "I" or picture.format in (None, "PNG")) and high < 65536 else 32
    if (width == 16 and high >= LIKELY_FULL) or high == 0:
        return 65535.0
    raise UnclearPixels(
        f"holds levels up to {high:g} in {width} bits, and does not say which level is white: save it with 8 bits"
    )


def _stated_white(picture: Image.Image, data: bytes) -> float | None:
    """A PNG's sBIT, a TIFF's SMaxSampleValue, MaxSampleValue or width; netpbm and JPEG 2000 are scaled to 16 bits by
    PIL.
    """
    if picture.format in ("PPM", "JPEG2000") and picture.mode != "F":
        return 65535.0
    if picture.format == "PNG":
        bits = next((content[0] for kind, content, _ in png_chunks(data) if kind == b"sBIT" and content), 16)
        return 2.0**bits - 1 if bits < 16 else None
    for tag in (341, 281):
        value = _tag(picture, tag)
        if isinstance(value, int | float) and 0 < value < float("inf"):
            return float(value)
    bits = _tag(picture, 258)
    return 2.0**bits - 1 if isinstance(bits, int) and bits < 16 else None


def _tag(picture: Image.Image, tag: int):
    """A TIFF's tag, the first of several values; None in other files."""
    try:
        value = picture.tag_v2.get(tag)
    except Exception:  # no TIFF, or a tag that cannot be parsed
        return None
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if hasattr(value, "numerator") and not isinstance(value, int) else value


def _check_wide_colours(picture: Image.Image, data: bytes) -> None:
    """Of 16-bit colours PIL keeps the upper byte: where only lower bits are used, next to nothing."""
    wide = data[24:25] == b"\x10" if data.startswith(PNG) else _tag(picture, 258) == 16
    if wide and picture.mode in ("RGB", "RGBA", "LA"):
        edges = picture.getextrema()[: 1 if picture.mode == "LA" else 3]
        high = max(edge for _, edge in edges)
        if 0 < high < LIKELY_FULL >> 8:
            raise UnclearPixels(
                "uses only the lower of its 16 bits, and does not say which level is white: save it with 8 bits"
            )
