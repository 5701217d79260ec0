"""From the Hub to weights/: `python -m minillava.weights download ORG/NAME`.

Only what `load` reads is fetched, and no pickle. The files come into `.NAME.part`, config.json last, so that nothing
there can be taken for a model; a download that was interrupted goes on where it stopped. When every file has the hash
that the Hub says, the folder gets its name and a SHA256SUMS, which `sha256sum -c` reads and whose first line names the
revision."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillava import weights
from minillava.errors import UserError, say
from minillava.files import read_file, write_atomically

SUMS = "SHA256SUMS"
SETTINGS = {
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
}
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # no part begins with a dot, so none leads out of weights/


def folder_or_download(path: str) -> str | Path:
    """`path` itself, unless it is the name of a model on the Hub and no folder: then the folder that it is, or was,
    downloaded to.
    """
    is_folder = any((parent / path).exists() for parent in (Path(), weights.ROOT))
    return download(path) if NAME.fullmatch(path) and not is_folder else path


def download(repository: str, revision: str | None = None, out: str | Path | None = None) -> Path:
    """Fetch ORG/NAME from the Hub (HF_ENDPOINT names another) into `out`, or weights/NAME; returns the folder.

    revision: a branch, tag or commit, pinned to its commit before the first file. A folder that was downloaded before
    is returned as it is. UserError for a name that the Hub does not have or does not give out, for a model without
    safetensors, and for a broken file."""
    if not NAME.fullmatch(repository):
        raise UserError(f"{repository!r} is not the name of a model on the Hub, such as llava-hf/llava-1.5-7b-hf.")
    target = Path(out) if out else weights.ROOT / "weights" / repository.split("/")[1]
    if target.exists():
        return _downloaded_before(target, repository, revision)
    from huggingface_hub import HfApi, hf_hub_download

    with _hub_errors(repository):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    files = needed_files(repository, info.siblings)
    size = sum(file.size or 0 for file in files)
    say(f"downloading {repository} at {info.sha[:12]}: {len(files)} files, {size / 1e9:.2f} GB, to {target}")
    part = target.with_name(f".{target.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    if size > shutil.disk_usage(part).free + sum(path.stat().st_size for path in part.rglob("*") if path.is_file()):
        raise UserError(
            f"{repository} has {size / 1e9:.1f} GB, for which {part.parent} has no room: give another folder with --out."
        )
    sums = []
    for file in files:
        with _hub_errors(repository):
            hf_hub_download(repository, file.rfilename, revision=info.sha, local_dir=part)
        sums.append(f"{_checked(part / file.rfilename, file)}  {file.rfilename}\n")
    write_atomically(part / SUMS, f"# {repository} at {info.sha}\n" + "".join(sums))
    shutil.rmtree(part / ".cache", ignore_errors=True)
    part.rename(target)
    return target


def _downloaded_before(target: Path, repository: str, revision: str | None) -> Path:
    first = read_file(target / SUMS).decode(errors="replace").split("\n")[0] if (target / SUMS).is_file() else ""
    held = first.removeprefix(f"# {repository} at ")
    if held == first:
        raise UserError(
            f"{target} exists already, and is not a download of {repository}: give another folder with --out."
        )
    if revision and not held.startswith(revision):
        raise UserError(
            f"{target} holds {repository} at {held[:12]}, not at {revision}: give another folder with --out, or delete it."
        )
    return target


def needed_files(repository: str, siblings: list) -> list:
    """Of the files of a repository those that `load` reads, config.json last; UserError where the weights are not in
    safetensors.
    """
    named = {file.rfilename: file for file in siblings}
    tensors = (
        [weights.SINGLE]
        if weights.SINGLE in named
        else [name for name in named if name == weights.INDEX or SHARD.fullmatch(name)]
    )
    if not tensors:
        raise UserError(
            f"{repository} has no safetensors, and a pickle is never loaded: look for a revision that has, and name it with --revision."
        )
    if "config.json" not in named:
        raise UserError(f"{repository} has no config.json: it is not a model that can be loaded here.")
    settings = sorted(SETTINGS & set(named), key=lambda name: (name == "config.json", name))
    return [named[name] for name in (*sorted(tensors), *settings)]


def _checked(path: Path, file) -> str:
    """The file's SHA-256, compared with what the Hub says of it: that of a large file, or Git's hash of a small one;
    UserError if they differ.
    """
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as content:
        while piece := content.read(2**20):
            sha256.update(piece)
            if not file.lfs:
                git.update(piece)
    right = file.lfs.sha256 == sha256.hexdigest() if file.lfs else file.blob_id in (None, git.hexdigest())
    if not right:
        path.unlink()
        raise UserError(
            f"{path.name} came broken from the Hub and was deleted: run the command again to fetch it anew."
        )
    return sha256.hexdigest()


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the Hub answers, or does not, as one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repository} is gated: accept its terms on its page on the Hub, then `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository} has no such revision: look at its branches and commits on the Hub.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"The Hub has no model {repository}, or it is private: check the name; for a private one, `hf auth login`."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{repository} is not here, and HF_HUB_OFFLINE forbids to fetch it: unset that, or give a folder."
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = "`hf auth login` with a valid token" if status in (401, 403) else "run the command again later"
        raise UserError(f"The Hub answered {status} when asked for {repository}: {remedy}.") from None
    except Exception as error:  # the network's, of whichever library huggingface_hub uses for it
        reason = type(error).__name__
        raise UserError(
            f"{repository} was not fetched whole ({reason}): run the command again, which goes on where it stopped."
        ) from None
