"""Pictures come out as transformers' image processors make them, and what cannot be read is one sentence."""

import contextlib
import http.server
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import minillava.inputs.image
from minillava.errors import UserError
from minillava.inputs.image import (
    CLIP_MEAN,
    CLIP_STD,
    fetch,
    open_image,
    pad_to_square,
    percent_encoded,
    preprocess,
    resize_and_crop,
)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def official(picture, size, pad):
    processor = (LlavaImageProcessorPil if pad else CLIPImageProcessorPil)(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_pad=pad
    )
    return processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]


# ------------------------------------------------------------ against transformers
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [30, 224])
@pytest.mark.parametrize(
    "edges", [(1, 1), (2, 3), (640, 480), (480, 641), (224, 224), (225, 223), (97, 53), (16, 900), (300, 3), (500, 499)]
)
def test_pixel_values_are_transformers(edges, size, pad):
    picture = noise(*edges)
    ours = preprocess(picture, size, pad)
    assert ours.dtype == torch.float32 and ours.shape == (3, size, size) and ours.is_contiguous()
    torch.testing.assert_close(ours, official(picture, size, pad), rtol=0, atol=1e-6)


def test_the_size_of_llava_1_5():
    picture = noise(1000, 400)
    for pad in (False, True):
        torch.testing.assert_close(preprocess(picture, pad=pad), official(picture, 336, pad), rtol=0, atol=1e-6)


@pytest.mark.parametrize("edges", [(1000, 1), (1, 1000), (2, 1001)])
def test_the_middle_of_a_very_long_picture(edges, monkeypatch):
    """It is resized by itself; only rounding tells it from the middle of the whole."""
    picture = noise(3, 3).resize(edges, Image.Resampling.BICUBIC)
    assert max(edges) / min(edges) > minillava.inputs.image.LONG
    whole = official(picture, 30, pad=False)
    torch.testing.assert_close(preprocess(picture, 30), whole, rtol=0, atol=1.01 / 255 / min(CLIP_STD))


def test_a_picture_of_one_row_and_many_columns():
    picture = Image.new("RGB", (200_000, 1), (255, 0, 0))
    assert preprocess(picture, 56).std(dim=(1, 2)).max() < 1e-5
    assert pad_to_square(picture).size == (minillava.inputs.image.PAD_EDGE,) * 2


# ------------------------------------------------------------ by hand
def test_one_colour_by_hand():
    values = preprocess(Image.new("RGB", (5, 7), (255, 0, 51)), 14)
    for channel, level in enumerate((1.0, 0.0, 0.2)):
        expected = (level - CLIP_MEAN[channel]) / CLIP_STD[channel]
        torch.testing.assert_close(values[channel], torch.full((14, 14), expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("edges", "corner"), [((4, 1), (0, 1)), ((1, 4), (1, 0)), ((5, 2), (0, 1)), ((3, 3), (0, 0))])
def test_padding_is_the_mean_colour_around_the_middle(edges, corner):
    """Of an odd number of rows to add, the lower side gets one more; the colour is int(255 * mean)."""
    square = np.asarray(pad_to_square(Image.new("RGB", edges, (1, 2, 3))))
    expected = np.full((max(edges), max(edges), 3), (122, 116, 104))
    x, y = corner
    expected[y : y + edges[1], x : x + edges[0]] = (1, 2, 3)
    assert (square == expected).all()


def test_the_crop_is_the_middle():
    # 7 wide, 4 high
    columns = Image.fromarray(np.repeat(np.arange(7, dtype=np.uint8)[None, :, None], 4, 0).repeat(3, 2))
    assert np.asarray(resize_and_crop(columns, 4))[0, :, 0].tolist() == [1, 2, 3, 4]


# ------------------------------------------------------------ modes and orientation
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "YCbCr"])
def test_modes_are_converted_as_pil_does(mode, tmp_path):
    """And as transformers does, since nothing is transparent here: it drops alpha, where we lay the picture on white
    (test_image_file.py).
    """
    picture = noise(20, 10).convert(mode)
    assert np.array_equal(open_image(picture), picture.convert("RGB"))
    if mode not in ("CMYK", "YCbCr"):
        picture.save(tmp_path / "picture.png")
        assert np.array_equal(open_image(str(tmp_path / "picture.png")), picture.convert("RGB"))
        ours = preprocess(open_image(picture), 14)
        torch.testing.assert_close(ours, official(picture, 14, False), rtol=0, atol=1e-6)


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    for picture in (open_image(tmp_path / "grey.png"), open_image(Image.fromarray(levels.astype(np.int32)))):
        assert picture.mode == "RGB" and np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert np.asarray(open_image(Image.fromarray(np.array([[7, 255]], np.int32))))[0, :, 2].tolist() == [7, 255]


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture = noise(8, 4)
    picture.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(open_image(tmp_path / "photo.png"), picture.transpose(Image.Transpose.ROTATE_270))


# ------------------------------------------------------------ what cannot be read
def png(width, height, data=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"I am not a picture", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|damaged"),
        (png(100, 100, b"\0" * 30), "damaged"),
        (png(10_000, 10_000), "too many"),
        (png(60_000, 60_000), "too many"),
        ("half a jpeg", "damaged"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "is HEIC, .*: save it as JPEG or PNG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heixmiaf" + bytes(90), "is HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(90), "is a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), "is JPEG XL"),
        (b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="9"></svg>', "is SVG"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"%PDF-1.7\n", "is a PDF"),
    ],
)
def test_a_bad_file_is_a_sentence(content, says, tmp_path):
    path = tmp_path / "picture"
    if content == "half a jpeg":
        noise(64, 64).save(path, "JPEG")
        content = path.read_bytes()[:1000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        open_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "absent.png",
        "a" * 5000,
        "a/" + "b" * 300,
        "a\0b",
        "",
        3,
        None,
        Image.new("RGB", (0, 5)),
    ):
        with pytest.raises(UserError):
            open_image(source)


def test_want_of_memory_is_no_damage(tmp_path, monkeypatch):
    noise(5, 5).save(tmp_path / "a.png")

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(minillava.inputs.image, "decode", fails)
    with pytest.raises(MemoryError):
        open_image(tmp_path / "a.png")


def test_a_file_of_20_gb_is_told_unread(tmp_path, monkeypatch):
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(20 * 2**30)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(UserError, match="too large"):
        open_image(tmp_path / "big.png")


# ------------------------------------------------------------ downloads
@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("web") / "a.png"
    noise(6, 5).save(path)
    answers = {
        "/a.png": path.read_bytes(),
        "/Br%C3%B6t%20chen%E2%80%93%E7%8C%AB.png?%C3%A9=1&b=%20c": path.read_bytes(),
    }
    answers |= {"/big": b"x" * 5000, "/text": b"hello", "/empty": b""}
    redirects = {
        "/moved": "/a.png",
        "/file": f"file://{path}",
        "/ftp": "ftp://127.0.0.1/a",
        "/data": "data:,a",
        "/round": "/round",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path in redirects:
                self.send_response(302)
                self.send_header("Location", redirects[self.path])
                self.end_headers()
            elif self.path in answers:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answers[self.path])
            elif self.path == "/slow":
                for _ in range(20):  # a byte now and then, so that no single wait is long
                    self.wfile.write(b"H")
                    time.sleep(0.05)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

        def handle(self):
            with contextlib.suppress(OSError):  # the reader has hung up
                super().handle()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_picture_from_the_web(server):
    assert np.array_equal(open_image(f"{server}/a.png"), noise(6, 5))
    assert fetch(f"{server}/moved") == fetch(f"{server}/a.png")


def test_a_url_as_browsers_show_it(server):
    for path in ("/Bröt chen–猫.png?é=1&b= c", "/Br%C3%B6t%20chen–猫.png?%C3%A9=1&b=%20c#part"):
        assert np.array_equal(open_image(server + path), noise(6, 5))
    for url, sent in (
        ("https://bücher.example:8080/ä", "https://xn--bcher-kva.example:8080/%C3%A4"),
        ("http://[::1]/a%20b?c='d'&e=[1]#f", "http://[::1]/a%20b?c='d'&e=[1]#f"),
    ):
        assert percent_encoded(url) == sent


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none", "404"),
        ("/file", "not allowed"),
        ("/ftp", "cannot"),
        ("/data", "not allowed"),
        ("/round", "cannot"),
        ("/text", "not a picture"),
        ("/empty", "empty"),
    ],
)
def test_a_bad_answer_is_a_sentence(server, path, says):
    with pytest.raises(UserError, match=says):
        open_image(server + path)


def test_a_download_has_limits(server, monkeypatch):
    monkeypatch.setattr(minillava.inputs.image, "MAX_BYTES", 4000)
    with pytest.raises(UserError, match="larger"):
        fetch(f"{server}/big")
    monkeypatch.setattr(minillava.inputs.image, "MAX_SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(UserError, match="no answer within"):
        fetch(f"{server}/slow")
    assert time.monotonic() - begin < 0.9


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "https://a b/",
        "http://[",
        "http://127.0.0.1:1/a.png",
        "http://127.0.0.1:99999/",
        f"http://{'ü' * 99}.example/",
        "http://127.0.0.1:1/\udcff",
    ],
)
def test_a_url_that_leads_nowhere(url):
    with pytest.raises(UserError):
        open_image(url)


def test_other_schemes_are_files():
    with pytest.raises(UserError, match="No such file"):
        open_image("ftp://127.0.0.1/a.png")


def test_a_data_uri_is_a_short_sentence():
    with pytest.raises(UserError, match="data: URI is not supported"):
        open_image("data:image/png;base64," + "A" * 40_000)


@pytest.mark.parametrize("spelt", ["~/a b.png", "~/a\\ b.png", "'~/a b.png'", "file://{}", " {} "])
def test_paths_as_people_give_them(spelt, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    noise(6, 5).save(tmp_path / "a b.png")
    path = tmp_path / "a b.png"
    assert open_image(spelt.format(path.as_uri()[7:] if spelt.startswith("file") else path)).size == (6, 5)
