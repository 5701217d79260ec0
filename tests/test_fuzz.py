"""500 made-up files for the loaders: each works or ends in one sentence, in less than 5 seconds and 1 GB. Not a part of
the default run:

    python -m pytest -m fuzz

The examples are the same every time; what they found is an ordinary test elsewhere.
"""

import copy
import io
import json
import re
import shutil
import signal
import struct
import zlib
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, TOWER, shaken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minillava import weights
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.inputs.image import open_image
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.training.samples import JsonSamples

SECONDS, BYTES = 5, 10**9
pytestmark = pytest.mark.fuzz
fuzz = settings(
    max_examples=125, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

NUMBERS = [0, 1, -1, 2, 7, 255, 2**16, 2**24, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, float("inf"), float("nan")]
WORDS = [
    "",
    "a",
    "llava",
    "llama",
    "default",
    "full",
    "linear",
    "gelu",
    "F32",
    "I64",
    "..",
    "/etc/passwd",
    "\0",
    "é\ud800",
    "x" * 10_000,
]
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.text(max_size=9)
keys = st.sampled_from(WORDS) | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


class TookTooLong(BaseException):
    """Not an Exception, so that no loader takes it for a broken file."""


@contextmanager
def limits():
    """A sentence is fine; more than 5 seconds of computing or 1 GB more at the peak is not."""
    before, handler = peak(reset=True), signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    except UserError as error:
        assert len(str(error)) <= 200 and "\n" not in str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    assert peak() - before < BYTES


def too_long(*_):
    raise TookTooLong


def peak(reset: bool = False) -> int:
    """The most memory held at once, in bytes; since now, after a reset. 0 where there is no /proc."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    return 0


def places(tree, path=()):
    """The paths of all values in nested dicts and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def changed(draw, tree):
    """A JSON value with a few of its parts replaced, left out or added; now and then something else entirely."""
    if draw(st.integers(0, 19)) == 0:
        return draw(values)
    tree = copy.deepcopy(tree)
    for path in draw(st.lists(st.sampled_from(list(places(tree))), min_size=1, max_size=3)):
        with suppress(KeyError, IndexError, TypeError):  # an earlier change took it away
            parent = tree
            for key in path[:-1]:
                parent = parent[key]
            action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if action == "remove":
                del parent[path[-1]]
            elif action == "add" and isinstance(parent, dict):
                parent[draw(st.sampled_from(WORDS))] = draw(values)
            else:
                parent[path[-1]] = draw(values)
    return tree


@st.composite
def damaged(draw, data: bytes):
    """Bytes with some replaced, cut away or repeated."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(0, 30))
        action = draw(st.sampled_from(["replace", "replace", "cut", "remove", "insert", "repeat"]))
        if action == "cut":
            del data[at:]
        elif action == "remove":
            del data[at : at + length]
        elif action == "repeat":
            data[at:at] = data[at : at + length]
        else:
            new = draw(st.binary(max_size=12) | st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"]))
            data[at : at + (len(new) if action == "replace" else 0)] = new
    return bytes(data)


def text_of(tree) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------ folders
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small LLaVA with all the files that a folder may hold."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a cat and a dog. USER: ASSISTANT:\n"] * 3, 350)
    text = TextConfig(**{**TEXT, "vocab_size": tokenizer.vocab_size})
    config = LlavaConfig(VisionConfig(**TOWER), text, image_token_id=tokenizer.image_id)
    folder = tmp_path_factory.mktemp("weights")
    weights.save(shaken(Llava(config)), Processor.for_model(tokenizer, config), folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3], "temperature": 0.6}')
    return folder


JSON_FILES = (
    "config.json",
    "config.json",
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer_config.json",
)


@fuzz
@given(data=st.data())
def test_config_files(folder, data, tmp_path_factory):
    name = data.draw(st.sampled_from(JSON_FILES))
    broken = tmp_path_factory.mktemp("broken")
    shutil.copytree(folder, broken, dirs_exist_ok=True)
    content = text_of(data.draw(changed(json.loads((folder / name).read_text()))))
    (broken / name).write_bytes(data.draw(damaged(content)) if data.draw(st.integers(0, 4)) == 0 else content)
    with limits():
        _, processor = weights.load(broken, device="cpu")
        processor("a cat")
    shutil.rmtree(broken)


@fuzz
@given(data=st.data())
def test_safetensors_headers(folder, data, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken")
    shutil.copytree(folder, broken, dirs_exist_ok=True)
    path = broken / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = text_of(data.draw(changed(json.loads(whole[8 : 8 + length]))))
    header = data.draw(damaged(header)) if data.draw(st.integers(0, 4)) == 0 else header
    said = data.draw(st.sampled_from([len(header)] * 6 + [0, 8, 2**40, 2**64 - 1]))
    path.write_bytes(struct.pack("<Q", said) + header + whole[8 + length :])
    with limits():
        weights.load_model(broken, device="cpu")
    shutil.rmtree(broken)


# ------------------------------------------------------------ records
RECORD = {
    "id": "1",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "<image>"},
    ],
}


@fuzz
@given(data=st.data())
def test_records(data, tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    (images / "sub").mkdir()
    for name in ("a.png", "sub/b c.png"):
        Image.new("RGB", (5, 7)).save(images / name)
    records = data.draw(
        changed(
            [
                RECORD,
                {**RECORD, "image": ["sub\\b%20c.png"]},
                {**RECORD, "image": None, "image_path": "a.png"},
                {"conversations": RECORD["conversations"][2:]},
            ]
        )
    )
    content = text_of(records)
    if isinstance(records, list) and data.draw(st.booleans()):
        content = b"\n".join(map(text_of, records))
    content = content.decode("utf-8", "replace").encode(
        data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]))
    )
    path = images / "data.json"
    path.write_bytes(data.draw(damaged(content)) if data.draw(st.integers(0, 4)) == 0 else content)
    with limits():
        samples = JsonSamples(path, images)
        for sample in (samples[index] for index in range(len(samples))):
            assert sample.picture is None or open_image(sample.picture).size
    shutil.rmtree(images)


# ------------------------------------------------------------ pictures
@cache
def pictures() -> list[bytes]:
    """Small files of many kinds."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    for kind, mode, options in (
        ("PNG", "RGBA", {"exif": exif}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "I;16", {}),
        ("PNG", "RGB", {"save_all": True, "append_images": [noise.convert("RGB")]}),
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("MPO", "RGB", {"save_all": True, "append_images": [noise.convert("RGB")]}),
        ("GIF", "P", {"transparency": 1}),
        ("WEBP", "RGBA", {"exif": exif}),
        ("TIFF", "F", {}),
        ("TIFF", "I", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"exif": exif, "compression": "tiff_deflate"}),
        ("BMP", "RGB", {}),
        ("PPM", "I", {}),
        ("ICO", "RGBA", {}),
        ("TGA", "RGBA", {}),
        ("JPEG2000", "RGB", {}),
        ("AVIF", "RGBA", {}),
    ):
        file = io.BytesIO()
        noise.convert(mode).save(file, kind, **options)
        made.append(file.getvalue())
    return made


def repaired(data: bytes) -> bytes:
    """A PNG's checksums put right, so that what is damaged is read and not only noticed."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        struct.pack_into(">I", fixed, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(fixed)


@fuzz
@given(data=st.data())
def test_picture_bytes(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "picture"
    content = data.draw(damaged(data.draw(st.sampled_from(pictures()))))
    path.write_bytes(repaired(content) if content.startswith(b"\x89PNG") else content)
    with limits():
        assert open_image(path).mode == "RGB"
