"""Several processes train as one does: the same losses, gradients' norms and weights, whatever each of them holds of a
batch.

The processes are forked from the test, which spares each of them the import of PyTorch; one test starts them by
torchrun.
"""
# ruff: noqa: F811 (fixtures of another file)

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp  # both are imported before the fork, once for all processes
from safetensors.torch import load_file
from test_training import config, dataset, losses, no_chart, parts, rows, stage1, tokenizer  # noqa: F401 (fixtures)

from minillava import distributed, weights
from minillava.anyres import Tiling
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.inputs.processor import Processor
from minillava.model import Llava
from minillava.training import LossModule, batches, checkpoint, loss, set_trainable, shards, starting_point, train
from minillava.training.precision import held_types
from minillava.training.samples import JsonSamples
from minillava.training.tensors import (
    blank_row,
    in_step,
    micro_batches,
    num_supervised,
    supervised_at_the_end,
    with_row,
)

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def in_processes(count: int, run, *arguments) -> list:
    """What `run(*arguments)` gives in each of `count` processes: its result, or a UserError's sentence."""
    context = multiprocessing.get_context("fork")
    results, port = context.SimpleQueue(), free_port()

    def child(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        )
        try:
            results.put((rank, run(*arguments)))
        except UserError as error:
            results.put((rank, f"error: {error}"))

    running = [context.Process(target=child, args=(rank,)) for rank in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in running] == [0] * count
    return [result for _, result in sorted(results.get() for _ in running)]


def train_in(count: int, settings) -> None:
    results = [train(settings)] if count == 1 else in_processes(count, train, settings)
    assert results == [None] * count


def figures(out) -> list[float]:
    """Losses, gradients' norms and validation losses, step by step."""
    return [row[name] for row in rows(out) for name in ("loss", "grad_norm", "validation_loss") if name in row]


def same(folder, one, *, counts=(1, 2, 3)) -> None:
    """The figures of all numbers of processes are those of one, and so are the trained weights."""
    outs = {count: str(folder / f"of-{count}") for count in counts}
    for count, out in outs.items():
        train_in(count, replace(one, out=out, save_every=3))
    for out in outs.values():
        assert figures(out) == pytest.approx(figures(outs[1]), rel=1e-5, abs=1e-6)  # sums of float32 in another order
        ours, theirs = load_file(f"{out}/model.safetensors"), load_file(f"{outs[1]}/model.safetensors")
        assert ours.keys() == theirs.keys()
        # bfloat16 in the files
        assert all(torch.allclose(ours[name].float(), theirs[name].float(), rtol=0.01, atol=1e-4) for name in theirs)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> dict:
    return dataset(tmp_path_factory.mktemp("mixed") / "data", 13, text_only={1, 5, 6, 9})


# ------------------------------------------------------------ as one process
def test_stage_2_with_micro_batches_on_pictures_and_on_text_alone(stage1, mixed, tmp_path):
    """Batches of 5 are 3 + 2 rows, or 2 + 2 + 1, in micro-batches of 2: some process has fewer of them than the others."""
    same(tmp_path, config("", 2, weights=str(stage1), batch_size=5, micro_batch_size=2, **mixed))


def test_fewer_rows_than_processes(stage1, mixed, tmp_path):
    same(tmp_path, config("", 2, weights=str(stage1), batch_size=1, max_steps=5, **mixed), counts=(1, 3))


def test_packed_rows_of_which_some_have_no_picture(stage1, mixed, tmp_path):
    """Rows of one sample with a picture, or of one or two of text alone; in step 4 two of three processes begin with
    the latter.
    """
    same(
        tmp_path,
        config("", 2, weights=str(stage1), batch_size=5, pack=True, max_length=90, micro_batch_size=1, **mixed),
    )


def test_stage_1_with_cached_features_and_validation(parts, mixed, tmp_path):
    options = dict(cache_features=str(tmp_path / "cache"), validation_share=0.3, workers=1)
    same(tmp_path, config("", 1, **parts, **options, **mixed), counts=(3, 1))
    # each of three looked at its share of the pictures
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    ours, theirs = ({path.name for path in (tmp_path / name / "best").iterdir()} for name in ("of-3", "of-1"))
    assert ours == theirs and "model.safetensors" in ours


def test_muon_and_checkpointed_activations(stage1, tmp_path):
    same(
        tmp_path,
        config("", 2, weights=str(stage1), optimizer="muon", checkpoint_activations=True, max_steps=3),
        counts=(1, 3),
    )


def test_a_tower_that_learns_and_a_frozen_layer(stage1, mixed, tmp_path):
    chosen = dict(train="tower", freeze="language_model.layers.0", batch_size=5, pack=True, max_length=90)
    same(tmp_path, config("", 2, weights=str(stage1), **chosen, **mixed), counts=(1, 3))


def test_lora_and_its_adapter(stage1, mixed, tmp_path):
    same(tmp_path, config("", 2, weights=str(stage1), lora_r=3, **mixed), counts=(1, 3))
    ours, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("of-3", "of-1"))
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_dropout_resumes_to_the_bit(stage1, mixed, tmp_path):
    settings = config(tmp_path / "whole", 2, weights=str(stage1), lora_r=3, lora_dropout=0.3, save_every=3, **mixed)
    train_in(2, settings)
    train_in(2, replace(settings, out=str(tmp_path / "cut")))
    forget_newest(tmp_path / "cut")
    train_in(2, replace(settings, out=str(tmp_path / "cut"), resume=True))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def seeds_of(settings) -> list[int]:
    """The numbers from which dropout is drawn in this process, step by step."""
    seeds, seed = [], torch.manual_seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda number: (seeds.append(number), seed(number))[1])
        train(settings)
    return seeds[-settings.max_steps :]


def test_dropout_is_another_in_each_step_and_process(stage1, mixed, tmp_path):
    both = in_processes(
        2, seeds_of, config(tmp_path, 2, weights=str(stage1), lora_r=3, lora_dropout=0.3, max_steps=4, **mixed)
    )
    assert len({*both[0], *both[1]}) == 8


def test_each_process_makes_its_own_rows_alone(stage1, mixed, tmp_path, monkeypatch):
    settings = config(tmp_path, 2, weights=str(stage1), batch_size=5, **mixed)
    made = {}
    for rank, count in ((0, 1), (0, 3), (1, 3), (2, 3)):
        monkeypatch.setattr(batches, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(batches, "world_size", lambda count=count: count)
        one = batches.Batches(JsonSamples(mixed["data"], mixed["images"]), weights.load(stage1)[1], settings, 512)
        made[rank, count] = [ids[ids > 0].tolist() for ids in one[0]["input_ids"]]
        one.close()
    assert len(made[0, 1]) > 3 and len(made[0, 3]) == 2
    assert all(made[rank, 3] == made[0, 1][rank::3] for rank in range(3))


def forget_newest(out: Path) -> None:
    """As if the run had been killed before its last checkpoint."""
    for path in checkpoint.places(out, 0):
        checkpoint.remove(path)


@pytest.fixture(scope="module")
def next_folder(tmp_path_factory, tokenizer) -> Path:
    """A LLaVA-NeXT, whose pictures become several views and unequal numbers of tokens."""
    torch.manual_seed(4)
    tower = VisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=14, patch_size=7
    )
    text = TextConfig(
        tokenizer.vocab_size, 40, 56, 2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512
    )
    model_config = LlavaConfig(tower, text, tokenizer.image_id, image_grid_pinpoints=((14, 28), (28, 14), (28, 28)))
    folder = tmp_path_factory.mktemp("next")
    weights.save(Llava(model_config), Processor.for_model(tokenizer, model_config, template="llava_hf"), folder)
    return folder


def test_llava_next(next_folder, mixed, tmp_path):
    few = dict(learning_rate=1e-4)  # at 3e-3, other micro-batches alone change the norms by 2e-5
    packed = dict(batch_size=5, micro_batch_size=1, pack=True, max_length=90)
    same(tmp_path, config("", 2, weights=str(next_folder), **few, **packed, **mixed), counts=(1, 3))


def test_products_in_bfloat16(stage1, mixed, tmp_path):
    """Within bfloat16's 3 digits, since the norms' weights travel in it too."""
    settings = config(tmp_path / "one", 2, weights=str(stage1), dtype="bfloat16", max_steps=3, **mixed)
    train(settings)
    in_processes(2, train, replace(settings, out=str(tmp_path / "two")))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.01)


# ------------------------------------------------------------ what each one holds
def held_in_each(folder) -> tuple[int, int, int]:
    """(bytes of parameters, private memory taken by them, the whole model's bytes)."""

    def private() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    with distributed.processes(torch.device("cpu")) as device:
        before = private()
        model, _ = starting_point(config("unused", 2, weights=str(folder)), mapped=True)
        set_trainable(model, 2)
        root = LossModule(model)
        distributed.shard_parameters(
            root,
            (*model.vision_tower.layers, *model.language_model.layers),
            device,
            held_types(root, torch.float32),
            torch.float32,
        )
        held = [p.to_local().nbytes for p in root.parameters()]
        return sum(held), private() - before, sum(p.nbytes for p in root.parameters())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="private memory is read from /proc")
def test_no_process_ever_holds_the_whole_model(tmp_path, tokenizer):
    tower = VisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=14, patch_size=7
    )
    text = TextConfig(
        tokenizer.vocab_size, 512, 2048, 4, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512
    )
    model_config = LlavaConfig(tower, text, tokenizer.image_id)
    weights.save(Llava(model_config), Processor.for_model(tokenizer, model_config, template="llava_hf"), tmp_path)
    held = in_processes(3, held_in_each, tmp_path)
    whole = held[0][2]
    assert whole > 60e6 and sum(parameters for parameters, _, _ in held) == whole
    assert all(parameters < 0.35 * whole and memory < 0.75 * whole for parameters, memory, _ in held), held


# ------------------------------------------------------------ resuming
@pytest.mark.parametrize("first, then", [(2, 3), (3, 1), (1, 2)])
def test_resumed_by_another_number_of_processes(stage1, mixed, tmp_path, first, then):
    settings = config(tmp_path / "whole", 2, weights=str(stage1), batch_size=5, save_every=3, **mixed)
    train(settings)
    out = tmp_path / "out"
    train_in(first, replace(settings, out=str(out)))
    forget_newest(out)
    train_in(then, replace(settings, out=str(out), resume=True))
    assert figures(out) == pytest.approx(figures(tmp_path / "whole"), rel=1e-5, abs=1e-6)
    assert [path.exists() for path in checkpoint.places(out, 0)] == [then == 1, then > 1]


def test_resumed_by_as_many_it_is_the_same_to_the_bit_also_from_the_one_before_a_damaged_checkpoint(
    stage1, mixed, tmp_path, capfd
):
    settings = config(tmp_path / "whole", 2, weights=str(stage1), save_every=3, **mixed)
    train_in(2, settings)
    out = tmp_path / "out"
    train_in(2, replace(settings, out=str(out), save_every=1))
    assert sorted(path.name for path in out.iterdir() if path.name.startswith("checkpoint")) == [
        "checkpoint",
        "checkpoint.1",
    ]
    path = sorted((out / "checkpoint").glob("*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    train_in(2, replace(settings, out=str(out), resume=True))
    assert capfd.readouterr().err.count("is damaged; going on from the one before it, of step 5") == 1
    assert losses(out) == losses(tmp_path / "whole")
    files = [sorted((folder / "checkpoint").glob("*.safetensors")) for folder in (out, tmp_path / "whole")]
    for ours, theirs in zip(*(map(load_file, paths) for paths in files), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("damage", ["missing", "torn", "listed elsewhere"])
def test_a_folder_that_is_not_whole_is_noticed(tmp_path, damage):
    shards.write_shards(tmp_path, {"parameter.a": torch.arange(7.0)}, {"step": "3"})
    assert shards.read_metadata(tmp_path) == {"step": "3"}
    (path,) = tmp_path.glob("*.safetensors")
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        (tmp_path / shards.SUMMARY).write_text(json.dumps({"step": "3", "sha256": {"../" + path.name: "0"}}))
    with pytest.raises(ValueError, match="missing or was changed"):
        shards.read_metadata(tmp_path)


# ------------------------------------------------------------ mistakes
def test_a_broken_picture_stops_all_and_is_said_by_who_met_it(stage1, mixed, tmp_path):
    broken = {1, 4, 7}
    data, out = dataset(tmp_path / "data", 12, broken=broken), tmp_path / "out"
    settings = config(out, 2, weights=str(stage1), batch_size=3, save_every=100, max_steps=9, **data)
    sentences = in_processes(3, train, settings)
    said = [sentence for sentence in sentences if sentence != "error: "]  # who met none is silent
    assert 1 <= len(set(said)) == len(said) < 3
    assert all(
        "png is damaged or cut short" in sentence and "--skip-broken leaves such records out" in sentence
        for sentence in said
    )
    in_processes(3, train, replace(settings, skip_broken=True, resume=(out / "checkpoint").exists()))
    listed = [json.loads(line)["id"] for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert sorted(listed) == sorted(map(str, broken)) and len(losses(out)) == 9  # whoever met them


def test_a_missing_file_is_said_once(stage1, tmp_path):
    sentences = in_processes(2, train, config(tmp_path, 2, weights=str(stage1), data=str(tmp_path / "none.json")))
    assert sentences[1] == "error: " and "none.json" in sentences[0]


def train_without_room(settings) -> None:
    """The second process may write nothing into a file, as on a full disk."""
    import resource

    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    train(settings)


def test_a_disk_that_is_full_for_one_process_is_told_by_all(stage1, tmp_path):
    sentences = in_processes(2, train_without_room, config(tmp_path, 2, weights=str(stage1), max_steps=1))
    assert all(
        "the checkpoint of step 1 could not be written" in sentence and "make room" in sentence
        for sentence in sentences
    )
    assert not (tmp_path / "checkpoint").exists()


def test_torchrun_without_its_environment_or_with_an_old_pytorch_is_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="start them with torchrun"), distributed.processes(torch.device("cpu")):
        pass
    monkeypatch.delattr(torch.distributed.checkpoint, "HuggingFaceStorageWriter")
    with (
        pytest.raises(UserError, match=r"safetensors, which .* does not: take 2\.13"),
        distributed.processes(torch.device("cpu")),
    ):
        pass


# ------------------------------------------------------------ in step
@pytest.mark.parametrize("cached", [False, True])
def test_a_blank_row_changes_neither_loss_nor_gradient_but_reaches_every_layer(stage1, tokenizer, cached):
    model = weights.load_model(stage1, device="cpu", dtype="float32")
    model.requires_grad_(True)
    ids, labels = torch.tensor([[3, 7, 9, 4]]), torch.tensor([[-100, -100, 9, 4]])
    text = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    row = blank_row(model.config, True, cached)
    gradients = []
    for batch in (text, with_row(text, row)):
        model.zero_grad(set_to_none=True)
        value = loss(model, batch)
        value.backward()
        gradients.append((value, {name: p.grad for name, p in model.named_parameters()}))
    (alone, before), (joined, after) = gradients
    assert torch.allclose(alone, joined, rtol=1e-6)
    assert before["projector.linear_1.weight"] is None and not after["projector.linear_1.weight"].any()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before if before[name] is not None)
    with pytest.raises(ValueError, match="no token"):
        loss(model, row)
    for alone in (row, blank_row(model.config, False, cached)):
        assert torch.isfinite(loss(model, supervised_at_the_end(alone)))


def test_a_blank_picture_of_llava_next_fills_its_places(next_folder):
    model = weights.load_model(next_folder, device="cpu", dtype="float32")
    row = blank_row(model.config, True, False)
    tiling = Tiling.of((14, 14), model.config.image_grid_pinpoints, 14, 7)
    assert (
        len(row["pixel_values"]) == tiling.num_views
        and int((row["input_ids"] == model.config.image_token_id).sum()) == tiling.num_tokens
    )
    assert torch.isfinite(loss(model, supervised_at_the_end(row)))


def test_one_process_has_the_micro_batches_and_no_blank_row(stage1):
    model_config = weights.load_model(stage1, device="cpu", dtype="float32").config
    ids = torch.arange(3, 24).view(3, 7)
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    batch["labels"][2] = -100
    found, total = in_step(batch, 1, model_config, False)
    expected = list(micro_batches(batch, 1, model_config))[:2]  # the third has nothing to learn from
    assert total == num_supervised(batch["labels"]) == 12
    for (part, count), other in zip(found, expected, strict=True):
        assert count == 6 and all(torch.equal(part[name], other[name]) for name in other)


# ------------------------------------------------------------ torchrun
def launched(out, count: int, *flags: str):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "train.py",
        "--stage",
        "2",
        "--out",
        str(out),
    ]
    command += [
        "--max-steps",
        "30",
        "--batch-size",
        "3",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--learning-rate",
        "1e-3",
    ]
    command += ["--optimizer", "adamw", "--weight-decay", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ranks_of(parent: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True
    ).stdout
    return sorted(map(int, found.split()))


def until(there, process) -> None:
    begun = time.monotonic()
    while not there():
        assert process.poll() is None and time.monotonic() - begun < 120
        time.sleep(0.05)


def test_torchrun_one_process_killed_stops_all_then_ctrl_c_saves_and_both_resume(stage1, mixed, tmp_path):
    flags = ["--weights", str(stage1), "--data", mixed["data"], "--images", mixed["images"], "--save-every", "4"]
    train_whole = config(tmp_path / "whole", 2, weights=str(stage1), max_steps=30, learning_rate=1e-3, seed=0, **mixed)
    train(train_whole)
    out = tmp_path / "out"
    process = launched(out, 2, *flags)
    until(lambda: (out / "checkpoint.1").exists(), process)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert (
        process.returncode
        and "train.py: error: another process of this training has ended: the same command with --resume" in said
    )
    process = launched(out, 2, "--resume", *flags)
    saved = (out / "metrics.jsonl").stat().st_mtime_ns
    until(lambda: (out / "metrics.jsonl").stat().st_mtime_ns != saved, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert "which is saved; the same command with --resume goes on from there" in said
    train_in(2, replace(train_whole, out=str(out), save_every=4, resume=True))
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
