"""The plan of a training: its counts against what a small training really computes and holds, and its hours against the
original's.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillava import training
from minillava.arguments import from_flags
from minillava.bench.plan import (
    LIKES,
    PAPERS,
    PlanConfig,
    config_of,
    flops,
    kept_bytes,
    memory,
    meta_model,
    num_parameters,
    plan,
    saved_bytes,
)
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.distributed import shard_parameters
from minillava.errors import UserError, run
from minillava.lora import add_lora
from minillava.model import Llava
from minillava.training.__main__ import main, parser
from minillava.training.loss import CHUNK
from minillava.training.optimizers import make_optimizers
from minillava.training.precision import held_types
from minillava.training.recipes import RECIPES, LoopConfig

ALIGN, TUNE = (RECIPES["v1.5"][stage].trained for stage in (1, 2))
LEARN = [ALIGN, TUNE, ("language_model.",), ("vision_tower.", "projector."), ("language_model.layers.1.",), ("",)]
SMALL = LlavaConfig(VisionConfig(24, 37, 3, 3, 14, 7), TextConfig(67, 36, 53, 2, 3), image_token_id=61)
VARIANTS = {
    "as it is": SMALL,
    "linear projector": replace(SMALL, projector_type="linear"),
    "CLS kept, last layer": replace(SMALL, vision_feature_select_strategy="full", vision_feature_layer=-1),
    "grouped queries": replace(SMALL, text_config=TextConfig(67, 36, 53, 2, 6, 2)),
    "tied head": replace(SMALL, text_config=TextConfig(67, 36, 53, 2, 3, tie_word_embeddings=True)),
}


def real(config: LlavaConfig, trained: tuple[str, ...], attention: str = "sdpa", lora_r: int = 0) -> Llava:
    torch.manual_seed(0)
    model = Llava(config, attention)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(trained)
    if lora_r:
        add_lora(model.language_model, lora_r, 10.0, 0.0, seed=0)
    return model


def batch(config: LlavaConfig, rows: int = 2, text: int = 11) -> dict[str, torch.Tensor]:
    """Rows of one picture and `text` tokens, which are all supervised: position t predicts label t + 1."""
    P = config.num_image_tokens
    ids = torch.randint(0, 60, (rows, P + text), generator=torch.Generator().manual_seed(1))
    ids[:, :P] = config.image_token_id
    size = config.vision_config.image_size
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(ids == config.image_token_id, -100),
        "pixel_values": torch.randn(rows, 3, size, size),
    }


def counted(model: Llava, inputs: dict[str, torch.Tensor]) -> int:
    """FLOPs of a forward and a backward pass, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter:
        training.loss(model, inputs).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trained", LEARN, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_flops_are_those_that_pytorch_counts(name, trained):
    config = VARIANTS[name]
    T = config.num_image_tokens + 11
    total, _ = flops(meta_model(config, trained), T, 11)
    assert counted(real(config, trained, "eager"), batch(config)) == 2 * total


def test_flops_of_lora_are_those_that_pytorch_counts():
    total, _ = flops(meta_model(SMALL, TUNE, 5), 15, 11)
    assert counted(real(SMALL, TUNE, "eager", 5), batch(SMALL)) == 2 * total


@pytest.mark.parametrize(("trained", "lora_r"), [(ALIGN, 0), (TUNE, 0), (TUNE, 5)])
def test_flops_of_computing_again_are_those_that_pytorch_counts(trained, lora_r):
    model = real(SMALL, trained, "eager", lora_r)
    training.checkpoint_layers(model)
    total, again = flops(meta_model(SMALL, trained, lora_r), 15, 11)
    assert again > 0 and counted(model, batch(SMALL)) == 2 * (total + again)


def test_a_frozen_language_model_costs_two_thirds():
    """At the official size: forward and the activations' gradient, of the three products that a learning one needs."""
    model = {trained: meta_model(config_of("v1.5", "llava-1.5-7b"), trained) for trained in (ALIGN, TUNE)}
    (frozen, _), (learning, _) = (flops(model[trained], 846, 270) for trained in (ALIGN, TUNE))
    assert 0.65 < frozen / learning < 0.70
    matrices = sum(p.numel() for p in model[TUNE].language_model.layers.parameters())
    assert learning == pytest.approx(6 * matrices * 846, rel=0.06)  # attention, the head and the tower are the rest


def test_parameters_are_the_known_ones():
    known = {
        ("v1.5", "llava-1.5-7b"): (7_063_427_072, 20_979_712),
        ("v1.5", "llava-1.5-13b"): (13_351_494_656, 31_467_520),
        ("v1", "llava-1.5-13b"): (None, 5_248_000),
    }
    for (recipe, like), (total, projector) in known.items():
        config = config_of(recipe, like)
        assert total in (None, num_parameters(meta_model(config, ALIGN)))
        assert num_parameters(meta_model(config, ALIGN), trained=True) == projector
    tuned = num_parameters(meta_model(config_of("v1.5", "llava-1.5-7b"), TUNE), trained=True)
    assert tuned == 7_063_427_072 - 303_507_456  # all but the tower


@pytest.mark.parametrize("trained", [ALIGN, TUNE])
def test_memory_is_what_a_training_holds(trained):
    model = real(SMALL, trained)
    shard_parameters(model, (), torch.device("cpu"), held_types(model, torch.bfloat16), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = training.loss(model, batch(SMALL))
    loss.backward()
    (optimizer,) = make_optimizers(model, LoopConfig())
    optimizer.step()
    means = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    held = [list(model.parameters()), [p.grad for p in model.parameters() if p.grad is not None], means]
    for gpus in (1, 4):
        planned = list(memory(meta_model(SMALL, trained), gpus, 2, 15).values())[:3]
        assert planned == [sum(tensor.nbytes for tensor in tensors) / gpus for tensors in held]


def saved(config: LlavaConfig, trained: tuple[str, ...], checkpointed: bool) -> float:
    """Bytes a token that a forward pass in bfloat16 keeps for the backward pass: tensors whose first dimension is the
    rows', or the tokens'. Our kernels are launched, but do not run.
    """
    report = pytest.importorskip("minillava.kernels.report")
    model, inputs, kept = real(config, trained), batch(config, 3, 44), {}
    model.language_model.attention = "triton"
    num_tokens = inputs["input_ids"].numel()
    if checkpointed:
        training.checkpoint_layers(model)

    def note(tensor):
        if tensor.shape[:1] in ((3,), (num_tokens,)):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with report.recorded(90):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            loss = training.loss(model, inputs)
        loss.backward()
    return sum(kept.values()) / num_tokens


@pytest.mark.parametrize("trained", [ALIGN, TUNE])
def test_activations_are_what_autograd_saves(trained):
    """Of one layer: the difference of a model with four and one with two."""
    C, I = 128, 172
    two, four = (replace(SMALL, text_config=TextConfig(67, C, I, layers, 4)) for layers in (2, 4))
    plain, checkpointed = ((saved(four, trained, how) - saved(two, trained, how)) / 2 for how in (False, True))
    assert checkpointed == pytest.approx(kept_bytes(4, C) - kept_bytes(3, C), rel=0.05)
    planned = saved_bytes(C, I) + checkpointed
    assert plain == pytest.approx(planned, rel=0.02) if trained == TUNE else planned / 2 < plain < planned


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and -m cuda")
@pytest.mark.parametrize(("trained", "lora_r"), [(ALIGN, 0), (TUNE, 0), (TUNE, 16)])
def test_on_a_gpu_memory_is_what_was_planned(trained, lora_r):
    """At most, in a step after the first: within 15% of the plan, of a language model of 136M parameters."""
    rows, text = 8, 508
    config = replace(SMALL, text_config=TextConfig(16384, 1024, 2816, 8, 8), image_token_id=16000)
    model, device = real(config, trained, "triton", lora_r), torch.device("cuda")
    training.checkpoint_layers(model)
    shard_parameters(model, (), device, held_types(model, torch.bfloat16), torch.bfloat16)
    (optimizer,) = make_optimizers(model, LoopConfig(optimizer="adamw"))
    inputs = {name: tensor.to(device) for name, tensor in batch(config, rows, text).items()}
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = training.loss(model, inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    planned = sum(memory(meta_model(config, trained, lora_r), 1, rows, text + 4).values())
    assert torch.cuda.max_memory_allocated() == pytest.approx(planned, rel=0.15)


# ------------------------------------------------------------ hours and steps
def test_the_originals_hours_imply_a_plausible_mfu():
    checked = 0
    for recipe, stage in PAPERS:
        for like in PAPERS[recipe, stage].hours:
            checked += 1
            assert 0.15 < plan(PlanConfig(recipe, like), stage, RECIPES[recipe][stage]).paper_mfu < 0.6, (
                recipe,
                stage,
                like,
            )
    assert checked == 8


def test_steps_hours_and_gpus():
    both = [plan(PlanConfig(), stage, RECIPES["v1.5"][stage]) for stage in (1, 2)]
    assert [p.steps for p in both] == [2_181, 5_198]
    assert plan(PlanConfig("v1"), 2, RECIPES["v1"][2]).steps == 3 * 4_929  # each epoch ends with a smaller batch
    tune = both[1]
    assert tune.hours * 0.4 == pytest.approx(tune.paper_hours * tune.paper_mfu)
    fewest = tune.fewest_gpus
    total = lambda gpus: sum(plan(PlanConfig(gpus=gpus), 2, RECIPES["v1.5"][2]).memory.values())
    assert total(fewest) <= 80e9 < total(fewest - 1)
    other = plan(PlanConfig(gpus=16, peak=624, mfu=0.2, records=665_298 // 2), 2, RECIPES["v1.5"][2])
    assert other.rows == 8 and other.hours == pytest.approx(tune.hours / 4, rel=1e-3)
    assert other.paper_mfu == tune.paper_mfu  # of the paper's records and GPUs


def test_one_gpu_gathers_nothing_but_keeps_copies():
    model = meta_model(SMALL, TUNE)
    one, two = (memory(model, gpus, 2, 15) for gpus in (1, 2))
    assert (
        one["autocast's copies of what learns"] == 2 * num_parameters(model, trained=True)
        and not two["autocast's copies of what learns"]
    )
    layer, language, tower = num_parameters(model.language_model.layers[0]), model.language_model, model.vision_tower
    ends = sum(map(num_parameters, (language.embed_tokens, language.norm, language.lm_head, model.projector)))
    patches = tower.embeddings.patch_embedding.weight.numel()  # a frozen matrix
    tower_ends = (
        4 * sum(map(num_parameters, (tower.embeddings, tower.pre_layrnorm, tower.post_layernorm))) - 2 * patches
    )
    assert (
        not one["gathered, and gradients of it"]
        and two["gathered, and gradients of it"] == 10 * layer + 8 * ends + tower_ends
    )
    assert one["layers' inputs, kept"] == two["layers' inputs, kept"] and one["loss in chunks"] > 12 * CHUNK


# ------------------------------------------------------------ the command
def test_the_table(capsys):
    main(["plan", "--recipe", "v1.5", "--like", "llava-1.5-7b", "--gpus", "8"])
    printed = capsys.readouterr().out
    for words in (
        "stage 1 stage 2",
        "parameters 7,063,427,072 7,063,427,072",
        "steps 2,181 5,198",
        "GPUs at least",
        "is an assumption",
    ):
        assert words in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 150
    main(["plan", "--stage", "1", "--gpus", "1", "--gpu-memory", "24"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "fits 24 GB NO" in printed and "stage 2" not in printed


WRONG = [
    ("--gpus 0", "--gpus must be"),
    ("--gpus 200", "more than stage 2's batch of 128"),
    ("--recipe tiny", "--recipe tiny"),
    ("--recipe v2", "invalid choice"),
    ("--like llava-v1.6-vicuna-7b", "invalid choice"),
    ("--mfu 1.5", "--mfu must be"),
    ("--peak nan", "--peak must be"),
    ("--gpu-memory -1", "--gpu-memory must be"),
    ("--records -1", "--records must be"),
    ("--tokens-per-sample 100", "a picture's 576 tokens"),
    ("--tokens-per-sample 2049", "at most 2048"),
]


@pytest.mark.parametrize(("flags", "said"), WRONG)
def test_mistakes_are_one_sentence(flags, said):
    with pytest.raises(UserError, match=said):
        main(["plan", *flags.split()])


def test_a_mistake_ends_with_status_2(capsys):
    assert run(lambda: main(["plan", "--gpus", "0"]), "minillava.training") == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and not out


def test_every_flag_has_its_default():
    assert from_flags(PlanConfig, parser().parse_args(["plan"])) == PlanConfig() and PlanConfig().like in LIKES
