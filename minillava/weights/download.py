"""From the Hub to weights/: `python -m minillava.weights download ORG/NAME`.

Only what `load` reads is fetched, and no pickle. The settings come first, so that a model which cannot be used here is
told before its gigabytes, and are written last: the files come into `.NAME.part`, where nothing can be taken for a
model. A download that was interrupted goes on where it stopped. When every file has the hash that the Hub says, the
folder gets its name and a SHA256SUMS, which `sha256sum -c` reads and whose first line names the revision.

The Hub is not trusted: its answers have limits of size and time, and are checked before they are used.
"""

import hashlib
import re
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from minillava.config import VisionConfig
from minillava.errors import UserError, say
from minillava.files import locked, parse_json, read_file, write_atomically
from minillava.weights.hf_config import read_any
from minillava.weights.tensor_files import INDEX, SINGLE

ROOT = Path(__file__).resolve().parents[2]  # of the repository
SUMS = "SHA256SUMS"
ADAPTER, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS = {
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
}
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)  # no part begins with a dot: none leads out of weights/
# Bytes of an answer that is not tensors, how long the Hub may think about one, and with how many bytes a second it comes.
LARGEST, SECONDS, SLOWEST = 1 << 26, 30, 50_000


def home_of(repository: str) -> Path:
    """The folder in weights/ that a model is downloaded to."""
    return ROOT / "weights" / repository.split("/")[1]


def downloaded_name(folder: Path) -> str:
    """ORG/NAME of the model that a folder is the download of; empty where it is something else."""
    return _read_sums(folder)[0]


def _read_sums(folder: Path) -> tuple[str, str]:
    """ORG/NAME and the commit."""
    first = read_file(folder / SUMS).decode(errors="replace").split("\n")[0] if (folder / SUMS).is_file() else ""
    named = re.fullmatch(f"# ({NAME.pattern}) at (.+)", first, re.ASCII)
    return named.groups() if named else ("", "")


def download(repository: str, revision: str | None = None, out: str | Path | None = None) -> Path:
    """Fetch ORG/NAME from the Hub (HF_ENDPOINT names another) into `out`, or weights/NAME; returns the folder.

    revision: a branch, tag or commit, pinned to its commit before the first file. A folder that was downloaded before
    is returned as it is. UserError for a name that the Hub does not have or does not give out, for a model that cannot
    be used here, and for a broken file.
    """
    if not NAME.fullmatch(repository):
        raise UserError(f"{repository!r} is not the name of a model on the Hub, such as llava-hf/llava-1.5-7b-hf.")
    target = Path(out) if out else home_of(repository)
    if target.exists():
        return _downloaded_before(target, repository, revision)
    commit, files = ask_hub(repository, revision)
    tensors, settings = needed_files(repository, files)
    size = sum(files[name]["size"] for name in tensors)
    read = {name: _fetch_settings(repository, commit, name, files[name]) for name in settings}
    check_usable(repository, read)
    count = len(tensors) + len(settings)
    say(f"downloading {repository} at {commit[:12]}: {count} files, {size / 1e9:.2f} GB, to {target}")
    part = target.with_name(f".{target.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    with locked(part):
        _check_room(repository, size, part)
        sums = [_fetch_tensors(repository, commit, name, files[name], part) for name in tensors]
        for name, content in read.items():
            write_atomically(part / name, content)
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        write_atomically(part / SUMS, f"# {repository} at {commit}\n" + "".join(sums))
        shutil.rmtree(part / ".cache", ignore_errors=True)
    part.rename(target)
    return target


def _downloaded_before(target: Path, repository: str, revision: str | None) -> Path:
    name, held = _read_sums(target)
    if name != repository:
        is_there = f"{target} exists already, and is not a download of {repository}"
        raise UserError(f"{is_there}: give another folder with --out.")
    if revision and not held.startswith(revision):
        other = f"{target} holds {repository} at {held[:12]}, not at {revision}"
        raise UserError(f"{other}: give another folder with --out, or delete it.")
    return target


def _check_room(repository: str, size: int, part: Path) -> None:
    held = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    if size > shutil.disk_usage(part).free + held:
        room = f"{repository} has {size / 1e9:.1f} GB, for which {part.parent} has no room"
        raise UserError(f"{room}: give another folder with --out.")


# ------------------------------------------------------------ what is needed
def needed_files(repository: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files of a repository that `load` reads: tensors, and settings with config.json last. UserError where the
    weights are not in safetensors.
    """
    names = set(names)
    if not names & {SINGLE, INDEX} and ADAPTER in names:
        check_no_pickle(repository, names)
        return [ADAPTER_TENSORS], [ADAPTER]
    tensors = [SINGLE] if SINGLE in names else sorted(filter(SHARD.fullmatch, names)) if INDEX in names else []
    if not tensors:
        remedy = "look for a revision that has, and name it with --revision"
        raise UserError(f"{repository} has no safetensors, and a pickle is never loaded: {remedy}.")
    if "config.json" not in names:
        raise UserError(f"{repository} has no config.json: it is not a model that can be loaded here.")
    settings = (SETTINGS if SINGLE in names else SETTINGS | {INDEX}) & names
    return tensors, sorted(settings, key=lambda name: (name == "config.json", name))


def check_no_pickle(where: str | Path, names: Iterable[str]) -> None:
    """UserError for an adapter that is kept in pickles, as LLaVA's own keeps its projector in non_lora_trainables."""
    pickles = sorted({"non_lora_trainables.bin", "adapter_model.bin"}.intersection(names))
    if pickles:
        what = f"{where} is an adapter (LoRA) in {pickles[-1]}, a pickle, which is never read here"
        raise UserError(f"{what}: merge it with its model in its own program.")


def check_usable(repository: str, settings: dict[str, bytes]) -> None:
    """UserError for a model that `load` would refuse."""
    if "config.json" not in settings:
        return
    config = parse_json(settings["config.json"], f"{repository}'s config.json")
    if not isinstance(config, dict):
        raise UserError(f"{repository}'s config.json must hold a JSON object, not a {type(config).__name__}.")
    if "mm_vision_tower" in config:  # --vision can give any other
        config = {**config, "mm_vision_tower": "clip-vit-large-patch14-336"}
    if not isinstance(read_any(config), VisionConfig) and "tokenizer.json" not in settings:
        remedy = "look for a copy of the model that has one, as llava-hf's have"
        raise UserError(f"{repository} has no tokenizer.json, without which no text can be read: {remedy}.")


# ------------------------------------------------------------ the Hub
def ask_hub(repository: str, revision: str | None) -> tuple[str, dict[str, dict]]:
    """The commit of a revision, and {name: size and hash} of its files."""
    path = f"/api/models/{repository}" + (f"/revision/{quote(revision, safe='')}" if revision else "") + "?blobs=true"
    answer = parse_json(_get(repository, path), f"The Hub's answer about {repository}")
    try:
        files = {file["rfilename"]: _size_and_hash(file) for file in answer["siblings"]}
        return re.fullmatch("[0-9a-f]{40}", answer["sha"])[0], files
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(f"The Hub's answer about {repository} makes no sense: run the command again later.") from None


def _size_and_hash(file: dict) -> dict:
    """SHA-256 of a large file, or Git's hash of a small one."""
    return {"size": int(file["size"]), "sha256": (file.get("lfs") or {}).get("sha256"), "git": file.get("blobId")}


def _get(repository: str, path: str, size: int = 0) -> bytes:
    """What the Hub answers, within the limits of size and time; UserError in one sentence for a refusal."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        remedy = f"unset that for `python -m minillava.weights download {repository}`"
        raise UserError(f"There is no weights folder {repository}, and HF_HUB_OFFLINE forbids to fetch it: {remedy}.")
    answers: list[bytes | str] = []
    url, seconds = constants.ENDPOINT + path, SECONDS + size / SLOWEST
    # A thread, because the library's time limit starts again with every byte that a slow server sends.
    thread = threading.Thread(target=lambda: answers.append(_answer(repository, url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    answer = answers[0] if answers else _unreachable(repository, f"no whole answer in {seconds:.0f} seconds")
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


def _answer(repository: str, url: str, seconds: float) -> bytes | str:
    """The whole answer, or a sentence that says why there is none."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    end, data = time.monotonic() + seconds, bytearray()
    try:
        with get_session().stream("GET", url, headers=build_hf_headers(), timeout=10) as answer:
            if answer.status_code >= 400:
                return _refusal(repository, answer.status_code, answer.headers.get("X-Error-Code"))
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > LARGEST or time.monotonic() > end:
                    return _unreachable(repository, "its answer has no end")
    except Exception as error:  # the network's, of whichever library huggingface_hub uses for it
        return _unreachable(repository, str(error) or type(error).__name__)
    return bytes(data)


def _unreachable(repository: str, reason: str) -> str:
    return f"{repository} is not here, and the Hub cannot be asked ({reason}): check the name and the network."


def _refusal(repository: str, status: int, code: str | None) -> str:
    if code == "GatedRepo":
        return f"{repository} is gated: accept its terms on its page on the Hub, then `hf auth login`."
    if code == "RevisionNotFound":
        return f"{repository} has no such revision: look at its branches and commits on the Hub."
    if status in (401, 404):
        name = "check the name, which is no folder either"
        return f"The Hub has no model {repository}, or it is private: {name}; for a private one, `hf auth login`."
    remedy = "`hf auth login` with a valid token" if status == 403 else "run the command again later"
    return f"The Hub answered {status} when asked for {repository}: {remedy}."


def _fetch_settings(repository: str, commit: str, name: str, file: dict) -> bytes:
    content = _get(repository, f"/{repository}/resolve/{commit}/{name}", file["size"])
    _check_hash([content], len(content), name, file)
    return content


def _fetch_tensors(repository: str, commit: str, name: str, file: dict, part: Path) -> str:
    """Fetch a file into `part`; its line in SHA256SUMS."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm

    class Bounded(tqdm):
        """A progress bar that ends a download of more bytes than the Hub said."""

        came = 0

        def update(self, n: float | None = 1):
            self.came += n or 0
            if self.came > file["size"]:
                raise UserError(f"{name} is longer than the Hub says: run the command again later.")
            return super().update(n)

    try:
        hf_hub_download(repository, name, revision=commit, local_dir=part, tqdm_class=Bounded)
    except UserError:
        shutil.rmtree(part / ".cache", ignore_errors=True)
        raise
    except Exception as error:  # as in _answer
        said = f"{repository} was not fetched whole ({type(error).__name__})"
        raise UserError(f"{said}: run the command again, which goes on where it stopped.") from None
    try:
        with open(part / name, "rb") as content:
            pieces = iter(lambda: content.read(1 << 20), b"")
            return f"{_check_hash(pieces, (part / name).stat().st_size, name, file)}  {name}\n"
    except UserError:
        (part / name).unlink()
        raise


def _check_hash(pieces: Iterable[bytes], size: int, name: str, file: dict) -> str:
    """The SHA-256 of a file; UserError if the Hub says another, or another of Git's hashes."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for piece in pieces:
        sha256.update(piece)
        if not file["sha256"]:
            git.update(piece)
    right = file["sha256"] == sha256.hexdigest() if file["sha256"] else file["git"] in (None, git.hexdigest())
    if not right:
        raise UserError(f"{name} came broken from the Hub and was deleted: run the command again to fetch it anew.")
    return sha256.hexdigest()
