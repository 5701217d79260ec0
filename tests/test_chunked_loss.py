"""The loss in chunks and activation checkpointing: the same numbers with less memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillava import training
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.language_model import LanguageModel
from minillava.model import Llava
from minillava.training.loss import chunked_loss, next_token_loss

module = sys.modules["minillava.training.loss"]  # `training.loss` is the function
ROOT = Path(__file__).resolve().parent.parent


def batch(T: int = 23, vocabulary: int = 101):
    torch.manual_seed(1)
    labels = torch.randint(0, vocabulary, (3, T))
    labels[0, 4:] = labels[1, :9] = -100
    return torch.randn(3, T, 24), labels


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_equal_the_whole(tied, frozen, monkeypatch):
    """Loss and gradients, of a head that learns or is frozen; the last chunk is a smaller one."""
    torch.manual_seed(0)
    model = LanguageModel(TextConfig(101, 24, 36, 2, 3, 1, tie_word_embeddings=tied)).requires_grad_(not frozen)
    monkeypatch.setattr(module, "CHUNK", 101 * 7)
    embeds, labels = batch()
    results = []
    for function in (next_token_loss, chunked_loss):
        inputs = embeds.clone().requires_grad_()
        model.zero_grad()
        loss = function(model, inputs, labels)
        (3 * loss).backward()
        results.append([loss.detach(), inputs.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) >= (2 if frozen else 12)
    for whole, chunks in zip(*results, strict=True):
        assert (whole - chunks).abs().max() <= 1e-6 * whole.abs().max() + 1e-8


def test_in_bfloat16_as_exact_as_the_whole(monkeypatch):
    torch.manual_seed(0)
    model = LanguageModel(TextConfig(101, 24, 36, 1, 3, 1))
    monkeypatch.setattr(module, "CHUNK", 101 * 7)
    embeds, labels = batch()
    gradients = []
    for function, autocast in ((next_token_loss, False), (next_token_loss, True), (chunked_loss, True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = function(model, embeds, labels)
        loss.backward()
        gradients.append(model.lm_head.weight.grad.clone())
    exact, whole, chunks = gradients
    assert chunks.dtype == torch.float32 and (chunks - exact).norm() <= 2 * (whole - exact).norm()


def test_no_target_is_said():
    with pytest.raises(ValueError, match="no token of this batch is supervised"):
        chunked_loss(
            LanguageModel(TextConfig(101, 24, 36, 1, 3, 1)), torch.randn(1, 3, 24), torch.tensor([[5, -100, -100]])
        )


MEMORY = """
import re, sys, torch
from pathlib import Path
from types import SimpleNamespace
from minillava.training.loss import chunked_loss, next_token_loss
torch.set_num_threads(1)
head = torch.nn.Linear(16, 32000, bias=False)
model = SimpleNamespace(hidden_states=lambda x, mask: x, lm_head=head, logits=head)
function = {"naive": next_token_loss, "chunked": chunked_loss}[sys.argv[1]]
function(model, torch.randn(1, 9, 16, requires_grad=True), torch.ones(1, 9, dtype=torch.int64)).backward()
# since exec, unlike ru_maxrss
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
function(model, torch.randn(1, 2049, 16, requires_grad=True), torch.randint(0, 32000, (1, 2049))).backward()
print(peak() - before)
"""


def test_a_quarter_of_the_memory():
    """32,000 words and 2,048 tokens, each way in a process of its own."""
    run = lambda way: (
        subprocess.run([sys.executable, "-c", MEMORY, way], cwd=ROOT, capture_output=True, check=True).stdout
    )
    peaks = [int(run(way)) for way in ("naive", "chunked")]  # KiB
    assert peaks[0] > 3 * 2048 * 32000 * 4 / 1024 * 0.6 and peaks[1] <= peaks[0] / 4, peaks


# ------------------------------------------------------------ activation checkpointing
def saved_bytes(model, inputs) -> tuple[int, list]:
    """Bytes that a forward pass keeps for the backward pass, besides parameters; and the gradients."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = training.loss(model, inputs)
    model.zero_grad()
    loss.backward()
    return sum(kept.values()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_checkpointing_keeps_less_and_changes_nothing():
    torch.manual_seed(0)
    model = Llava(
        LlavaConfig(
            VisionConfig(12, 20, 2, 3, image_size=14, patch_size=7), TextConfig(50, 24, 36, 6, 3, 1), image_token_id=49
        )
    )
    ids = torch.randint(0, 49, (2, 40))
    ids[:, 1:5] = 49
    inputs = {"input_ids": ids, "labels": ids.masked_fill(ids == 49, -100), "pixel_values": torch.randn(2, 3, 14, 14)}
    plain, expected = saved_bytes(model, inputs)
    training.checkpoint_layers(model)
    checkpointed, gradients = saved_bytes(model, inputs)
    assert checkpointed < plain / 3
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients, strict=True))


def test_training_takes_the_chunks_where_logits_are_many(monkeypatch):
    torch.manual_seed(0)
    model = Llava(
        LlavaConfig(
            VisionConfig(12, 20, 2, 3, image_size=14, patch_size=7), TextConfig(50, 24, 36, 1, 3, 1), image_token_id=49
        )
    )
    inputs = {"input_ids": torch.arange(3, 20)[None], "labels": torch.arange(3, 20)[None]}
    called = []
    monkeypatch.setattr(
        training, "chunked_loss", lambda *arguments: called.append("chunks") or chunked_loss(*arguments)
    )
    whole = training.loss(model, inputs)
    monkeypatch.setattr(training, "MANY_LOGITS", 17 * 50 - 1)
    assert abs(training.loss(model, inputs) - whole) < 1e-6 and called == ["chunks"]
