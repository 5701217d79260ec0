"""Step 4 of a check: the whole model on the student's part.

The part takes the product's place in weights/tiny, or in a few steps of training, and what comes out is compared with
what comes out without it. Then the model is asked about lessons/images/cat.png, whether the part is right or wrong.
"""

import functools
import json
import tempfile
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

import minillava
from lessons.solutions import FILES, solution
from lessons.swap import describe, replaced, short, targets_of
from minillava import training, weights
from minillava.data.scene_records import records
from minillava.errors import UserError
from minillava.generation import new_cache
from minillava.inputs.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
CAT, QUESTION = ROOT / "lessons" / "images" / "cat.png", "What is in the picture?"
TINY, LANGUAGE = ROOT / "weights" / "tiny", ROOT / "weights" / "tiny-language"
TOLERANCE = 1e-4
STEPS = 4  # of the short training


# What a run gives: numbers to compare, how often each part was called, and what the model answers.
Run = tuple[Tensor, Counter, str]


def attempt(key: str, parts: dict[str, object], path: str | Path = "?") -> list | str:
    """What the whole model gives on these parts: [numbers, the calls of each part, answer], or why it cannot run."""
    try:
        with quiet():
            values, calls, answer = run_of(key)(parts)
    except NotImplementedError as error:
        return f"part of it is not written yet ({error})"
    except (Exception, SystemExit) as error:
        return f"the model cannot run on it: {describe(error, path)}"
    return [values, [calls[target] for target in parts], answer]


def verdict(key: str, given, truth: list, right: bool = True) -> tuple[bool, str]:
    """(is it right, the sentence): what an attempt gave, compared with the product's. `right`: all steps before were."""
    if isinstance(given, str):
        return False, given
    values, calls, answer = given
    due, due_calls, due_answer = truth
    what, names = RUNS.get(key, (run_model, "logits"))[1], [short(target) for target in targets_of(FILES[key])]
    same = " too" if answer == due_answer else f" (on the product's own: {due_answer!r})"
    says = f"; on this part the model says {answer!r}{same}"
    if values.shape != due.shape:
        return False, f"{what} of the shape {tuple(values.shape)} where {tuple(due.shape)} is due{says}"
    difference = (values - due).abs().max().item()
    called = ", ".join(f"{name} called {count} times" for name, count in zip(names, calls, strict=True))
    if not difference <= TOLERANCE:  # NaN is not right, either
        return False, f"{called}; {what} differ by {difference:.2g}{says}"
    for name, count, due_count in zip(names, calls, due_calls, strict=True):
        if count != due_count:
            return False, f"{name} is called {count} times where {due_count} are due{says}"
    if not right:
        return False, f"{called}; {what} within {TOLERANCE:g} all the same{says}"
    return True, f"{called}, {what} within {TOLERANCE:g}; asked {QUESTION!r} the model says {answer!r}"


def run_of(key: str):
    """The function that runs the whole model for this exercise."""
    return RUNS.get(key, (run_model, ""))[0]


def product(key: str) -> list:
    """What an attempt gives on the product's own parts."""
    values, calls, answer = product_of(run_of(key))
    return [values, [calls[target] for target in targets_of(FILES[key])], answer]


@functools.cache
def product_of(run) -> Run:
    """The run on the product's own parts, which is the same for all exercises that are run in the same way."""
    parts = {}
    for key in FILES:
        with suppress(UserError):  # the file of another exercise, half-written
            parts |= solution(key) if run_of(key) is run else {}
    with quiet():
        return run(parts)


@contextmanager
def quiet():
    """Progress bars and printed figures are not what the student wants to read now."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.random.fork_rng(devices=[]):
        yield


def load():
    return weights.load(TINY, device="cpu", dtype="float32", attention="eager")


def ask(model, processor) -> str:
    return minillava.answer(model, processor, CAT, QUESTION, max_new_tokens=40)


# ------------------------------------------------------------ parts of the forward path
@torch.inference_mode()
def run_model(parts: dict[str, object]) -> Run:
    """Logits of a question about the picture, the last three positions after the others, through a cache."""
    with replaced(parts) as calls:
        model, processor = load()
        inputs = processor(QUESTION, CAT)
        ids, cache = inputs["input_ids"], new_cache(model, 1, inputs["input_ids"].shape[1])
        first = model(ids[:, :-3], inputs["pixel_values"], cache=cache)
        values = torch.cat([first, model(ids[:, -3:], cache=cache)], 1)
        calls = Counter(calls)
        return values, calls, ask(model, processor)


def run_sampling(parts: dict[str, object]) -> Run:
    """The ids of a greedy answer, and of one drawn from the single likeliest id."""
    with replaced(parts) as calls:
        model, processor = load()
        inputs = processor(QUESTION, CAT)
        greedy = list(minillava.generate(model, **inputs, max_new_tokens=12))
        likeliest = list(minillava.generate(model, **inputs, max_new_tokens=12, temperature=1.0, top_k=1, seed=1))
        calls = Counter(calls)
        return torch.tensor([*greedy, *likeliest], dtype=torch.float64), calls, ask(model, processor)


# ------------------------------------------------------------ parts of the training
def run_training(parts: dict[str, object], stages: tuple[int, ...] = (2,)) -> Run:
    """A few steps of a stage, by train.py's own function: learning rate and loss of each, and what has moved."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="minillava-check-", ignore_cleanup_errors=True) as folder,
        replaced(parts) as calls,
        replaced({"minillava.training.metrics.Metrics.show": lambda *_: None}),
    ):
        records(2 * STEPS, folder)  # a few scenes with conversations, as LLaVA's JSON
        for stage in stages:
            out = Path(folder) / f"stage{stage}"
            config = training.TrainConfig(
                stage=stage,
                data=f"{folder}/conversations.json",
                images=folder,
                weights=str(TINY),
                out=str(out),
                max_steps=STEPS,
                batch_size=2,
                learning_rate=1.5e-3,
                warmup_ratio=0.5,
                optimizer="muon",
                dtype="float32",
            )
            training.train(config)
            for line in (out / "metrics.jsonl").read_text().splitlines():
                row = json.loads(line)
                rows += [row["loss"], row["lr"] * 1e3, row["grad_norm"]] if "loss" in row else []
            trained, processor = weights.load(out, device="cpu", dtype="float32")
            begun = weights.load_model(TINY, device="cpu", dtype="float32").state_dict()
            moved = [not torch.equal(tensor, begun[name]) for name, tensor in trained.state_dict().items()]
            rows.append(float(sum(2.0 ** -(i % 40) * was for i, was in enumerate(moved))))
        calls = Counter(calls)
        answer = ask(trained, processor)
    return torch.tensor(rows, dtype=torch.float64), calls, answer


def run_contrastive(parts: dict[str, object]) -> Run:
    """The tower's own loss on real scenes, its gradient, and what the model says after a few steps of it."""
    from minillava.pretrain import vision as pretrain

    with replaced(parts) as calls:
        model, processor = load()
        torch.manual_seed(0)
        pair = pretrain.ContrastivePair(Tokenizer.from_file(LANGUAGE))
        pair.vision_tower.load_state_dict(model.vision_tower.state_dict())
        batch = pretrain.phrase_batch(Tokenizer.from_file(LANGUAGE), 1 << 33, 3)
        optimizer, values = torch.optim.SGD(pair.parameters(), lr=1e-4), []
        for _ in range(2):
            loss = pair.loss(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gradient = torch.stack([p.grad.norm() for p in pair.parameters() if p.grad is not None]).norm()
            values += [loss.item(), gradient.item() / 100]
        model.vision_tower.load_state_dict(pair.vision_tower.state_dict())
        calls = Counter(calls)
        return torch.tensor(values, dtype=torch.float64), calls, ask(model, processor)


RUNS = {
    "sample": (run_sampling, "ids"),
    "contrastive": (run_contrastive, "losses and gradients"),
    "label_mask": (run_training, f"losses of {STEPS} steps of stage 2"),
    "loss": (run_training, f"losses of {STEPS} steps of stage 2"),
    "schedule": (run_training, f"losses of {STEPS} steps of stage 2"),
    "trainable": (functools.partial(run_training, stages=(1, 2)), f"losses of {STEPS} steps of each stage"),
}
