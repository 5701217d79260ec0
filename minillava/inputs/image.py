"""From a file, a URL or a PIL image to CLIP's `pixel_values`.

    open_image("cat.png") -> RGB picture;  preprocess(picture, 336) -> float32 (3, 336, 336)

CLIP (arXiv 2103.00020): the shorter edge becomes E (bicubic), the centre E x E is cut out, and each channel is
normalized. LLaVA-1.5 (arXiv 2310.03744) trains its second stage with the picture padded to a square first, so that
nothing is cut away; llava-hf's models do not pad. Source: transformers' CLIPImageProcessor on PIL, to the last bit.
A picture is opened once, where it comes in; what follows takes the RGB picture.
"""

import string
import threading
import time
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minillava.errors import UserError
from minillava.files import given_path, read_file
from minillava.inputs.image_file import Unreadable, decode, to_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_BYTES, MAX_SECONDS = 20_000_000, 10.0  # what a download may weigh and last
MAX_FILE = 1 << 29  # bytes of a file: the most pixels that Pillow reads, with 16-bit colours
# beyond this ratio of the edges, only the middle of the picture is resized: the whole would not fit in memory
LONG = 400
PAD_EDGE = 8192  # a picture with a longer edge is shrunk before it is padded, for the same reason


def open_image(source: str | Path | Image.Image) -> Image.Image:
    """The RGB picture behind a path, an http(s) URL or a PIL image, on white where it is transparent, upright as its
    EXIF data say.

    Raises UserError in one sentence for what is missing, empty, not a picture, cut short or unreasonably large.
    """
    name = "The picture" if isinstance(source, Image.Image) else str(source)
    file = source if isinstance(source, Image.Image) else _read(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about metadata; what matters is an error here
            picture = to_rgb(decode(file), file) if isinstance(file, bytes) else to_rgb(file)
    except Unreadable as unclear:
        raise UserError(f"{name} {unclear}.") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not a picture that can be read.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which is too many.") from None
    except MemoryError:  # which says nothing about the file
        raise
    except Exception as error:  # each of Pillow's decoders has its own way to fail
        raise UserError(f"{name} is damaged or cut short: {' '.join(str(error).split()).rstrip('.')}.") from None
    if 0 in picture.size:
        raise UserError(f"{name} has no pixels.")
    return picture


def _read(source: str | Path) -> bytes:
    source = given_path(source) if isinstance(source, str) else source
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        data = fetch(source)
    elif isinstance(source, str) and source.lower().startswith("data:"):
        raise UserError("A data: URI is not supported: save the picture as a file and give its path.")
    elif isinstance(source, str | Path):
        data = read_file(source, MAX_FILE)
    else:
        raise UserError(f"A picture is a path, a URL or a PIL image, not a {type(source).__name__}.")
    if not data:
        raise UserError(f"{source} is empty.")
    return data


def fetch(url: str) -> bytes:
    """Download at most 20 MB in at most 10 seconds, by http or https and nothing else, whatever a redirect says."""
    result: list[bytes | Exception] = []
    # A thread, because a socket's timeout starts again with every byte that a slow server sends.
    thread = threading.Thread(target=lambda: result.append(_download(url)), daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    answer = result[0] if result else TimeoutError(f"no answer within {MAX_SECONDS:g} seconds")
    if isinstance(answer, Exception):
        raise UserError(f"{url} cannot be downloaded: {' '.join(str(answer).split()).rstrip('.')}.")
    return answer


def _download(url: str) -> bytes | Exception:
    opener = urllib.request.OpenerDirector()  # build_opener would add file:, ftp: and data:
    for handler in ("Proxy", "Unknown", "HTTP", "HTTPS", "HTTPDefaultError", "HTTPRedirect"):
        opener.add_handler(getattr(urllib.request, f"{handler}Handler")())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    end, data = time.monotonic() + MAX_SECONDS, bytearray()
    try:
        request = urllib.request.Request(percent_encoded(url), headers={"User-Agent": "minillava"})
        with opener.open(request, timeout=MAX_SECONDS) as response:
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    return ValueError(f"it is larger than {MAX_BYTES // 1_000_000} MB")
                if time.monotonic() > end:
                    return TimeoutError("it takes too long")
    except Exception as error:  # reported by fetch, in the caller's thread
        return error
    return bytes(data)


def percent_encoded(url: str) -> str:
    """A URL as it is sent: browsers show its letters beyond ASCII and its spaces as themselves."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return quote(parts._replace(netloc=host).geturl(), safe=string.punctuation)


def preprocess(
    picture: Image.Image,
    image_size: int = 336,
    pad: bool = False,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    resample: int = Image.Resampling.BICUBIC,
    squash: bool = False,
) -> Tensor:
    """CLIP's `pixel_values` of one RGB picture: float32 (3, E, E). `squash`: resized to a square, with nothing cut off."""
    if pad:
        picture = pad_to_square(picture, mean)
    resized = (
        picture.resize((image_size, image_size), resample) if squash else resize_and_crop(picture, image_size, resample)
    )
    pixels = np.asarray(resized)  # (E, E, 3)
    pixels = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    pixels = (pixels - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # (3, E, E)


def pad_to_square(picture: Image.Image, mean: Sequence[float] = CLIP_MEAN) -> Image.Image:
    """The picture in the middle of a square of the mean colour, which is about zero once it is normalized."""
    if max(picture.size) > PAD_EDGE:
        picture = picture.copy()
        picture.thumbnail((PAD_EDGE, PAD_EDGE), Image.Resampling.BICUBIC)
    width, height = picture.size
    edge = max(width, height)
    square = Image.new("RGB", (edge, edge), tuple(int(255 * channel) for channel in mean))  # CLIP's: (122, 116, 104)
    square.paste(picture, ((edge - width) // 2, (edge - height) // 2))
    return square


def resize_and_crop(picture: Image.Image, size: int, resample: int = Image.Resampling.BICUBIC) -> Image.Image:
    """The shorter edge becomes `size`, the centre size x size stays."""
    width, height = picture.size
    short = min(width, height)
    resized = (size * width // short, size * height // short)
    left, top = ((edge - size) // 2 for edge in resized)
    if max(resized) <= LONG * size:
        return picture.resize(resized, resample).crop((left, top, left + size, top + size))
    x, y = width / resized[0], height / resized[1]  # without making the pixels that the crop throws away
    return picture.resize((size, size), resample, box=(left * x, top * y, (left + size) * x, (top + size) * y))
