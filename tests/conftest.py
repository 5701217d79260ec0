"""What holds for every test, and small random models of transformers, the oracle, with the same weights in ours.

For every test: draws begin from the same seeds, whatever ran before; a test that needs a package of
requirements-dev.txt that is not installed is skipped; no GPU is used, except with `-m cuda`.
"""

import importlib.util
import multiprocessing
import os
import random
import re
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
import pytest
import torch

from minillava import training, weights
from minillava.training.scoring import cases

torch.set_num_threads(1)  # a busy machine with two threads is 20 times slower than with one

DEVELOPMENT = (Path(__file__).parent.parent / "requirements-dev.txt").read_text(encoding="utf-8")
MISSING = {name for name in re.findall(r"^\w+", DEVELOPMENT, re.MULTILINE) if not importlib.util.find_spec(name)}


# ------------------------------------------------------------ options
def pytest_addoption(parser):
    parser.addoption(
        "--random-order", type=int, metavar="SEED", help="run files, and the tests of each, in random order"
    )


def pytest_configure(config):
    """Without a GPU "auto" is the CPU, also in the processes that a test starts."""
    if not re.search(r"(?<!not )\bcuda\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if hasattr(signal, name):  # nohup and `&` ignore them, and so would what is tested
            signal.signal(getattr(signal, name), handler)
    if "hypothesis" not in MISSING:
        from hypothesis import settings

        settings.register_profile("always the same", derandomize=True, deadline=None)
        settings.load_profile("always the same")


def pytest_collection_modifyitems(config, items):
    seed = config.getoption("--random-order")
    if seed is not None:
        shuffled = random.Random(seed)
        files = {item.path: shuffled.random() for item in items}
        items.sort(key=lambda item: (files[item.path], shuffled.random()))


# ------------------------------------------------------------ the same seeds for every test
def seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup():
    seed_everything()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    seed_everything()
    return (yield)


# ------------------------------------------------------------ packages that are not installed
def missing_package(error: BaseException | None) -> str | None:
    """The missing package of requirements-dev.txt that the error, or one that led to it, is about."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in MISSING:
            return error.name.split(".")[0]
        error = error.__cause__ or error.__context__
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file that imports a missing package is skipped."""
    seed_everything()
    report = yield
    if report.failed and (name := missing_package(report.call.excinfo.value)):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 1, f"Skipped: needs {name}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    return (yield from skipped_without_a_package())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    return (yield from skipped_without_a_package())


def skipped_without_a_package():
    try:
        return (yield)
    except Exception as error:
        if name := missing_package(error):
            pytest.skip(f"needs {name}")
        raise


# ------------------------------------------------------------ models

IMAGE, VOCABULARY = 61, 67
# P = 4
TOWER = dict(
    hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=14, patch_size=7
)
TEXT = dict(
    hidden_size=36,
    intermediate_size=53,
    num_hidden_layers=2,
    num_attention_heads=3,
    vocab_size=VOCABULARY,
    max_position_embeddings=128,
)


def transformers_llava(vision: dict | None = None, text: dict | None = None, **options):
    """A small random Llava of transformers, its weights large enough to tell a mistake from noise."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**TOWER, **(vision or {})}),
        text_config=LlamaConfig(**{**TEXT, **(text or {})}, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=IMAGE,
        **options,
    )
    return shaken(LlavaForConditionalGeneration(config).eval())


def shaken(model):
    """Give every parameter, norms and biases too, a value of its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2 / max(1, parameter.numel()) ** 0.125)
    return model


def llava_pair(folder, vision: dict | None = None, text: dict | None = None, **options):
    """(transformers' model, ours from its files)."""
    theirs = transformers_llava(vision, text, **options)
    theirs.save_pretrained(folder)
    return theirs, weights.load_model(folder, device="cpu", dtype="float32")


def prompt(text_ids=(5, 9, 13), pictures: int = 1, image_tokens: int = 4, size: int = 14, seed: int = 0) -> dict:
    """input_ids (1, T) with the placeholders after the first id, and pixel_values."""
    generator = torch.Generator().manual_seed(seed)
    ids = [1, *[IMAGE] * image_tokens * pictures, *text_ids]
    return {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(pictures, 3, size, size, generator=generator)}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    return llava_pair(tmp_path_factory.mktemp("pair"))


def forked(function, *arguments) -> multiprocessing.Process:
    """A process that runs the function, without the seconds in which a new Python imports everything."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


@pytest.fixture(scope="session", autouse=True)
def few_questions():
    """A training on scenes asks its model 300 questions at each checkpoint; here those about one scene are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "cases", lambda split, scenes: cases(split, 1))
        yield
