"""The vision tower's features of every picture, on disk: where the tower is frozen, it has to look at each picture once
and never again.

    FOLDER/<what made them>/<shard>.safetensors        features (P, C), named by the SHA-256 of the picture's file
                                                       and a checksum of their own

Nothing here can be stale. A picture's key is its bytes, hashed again at each use; the name of the inner folder is the
hash of all else that features depend on: the tower's weights, shape and layer, how pictures are prepared, and the
dtype. Whoever changes one of them gets other features. They are stored in the dtype that the projector reads: bfloat16
where products run in bfloat16, so that nothing is rounded twice, else float32.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from minillava.distributed import agree, is_first, rank, world_size
from minillava.errors import UserError
from minillava.files import read_file, write_atomically
from minillava.inputs.image import open_image
from minillava.inputs.processor import Processor
from minillava.model import Llava
from minillava.training.precision import autocast, product_dtype

VERSION = 1  # to be raised when the tower or the preprocessing computes something else from the same files
SHARD_BYTES, AT_ONCE = 1 << 28, 32  # what a file holds at most, and how many pictures the tower looks at together
SPARE = 1 << 30  # bytes of the disk that are left for checkpoints and the rest of the world


class FeatureCache:
    """The features of one tower and one way to prepare pictures. `fill` computes what is missing, `of` reads; threads
    may read.
    """

    def __init__(self, folder: str | Path, model: Llava, processor: Processor, dtype: str):
        """`dtype` is the training's: float32, bfloat16 or auto.

        UserError for LLaVA-NeXT, and for a tower that learns.
        """
        if processor.image_grid_pinpoints:
            raise UserError("--cache-features is for models with one view a picture, and LLaVA-NeXT has several")
        if any(parameter.requires_grad for parameter in model.vision_tower.parameters()):
            raise UserError("--cache-features is for a frozen vision tower, and this one learns")
        self.tower, self.processor, self.dtype = model.vision_tower, processor, dtype
        weight = next(self.tower.parameters())
        self.device = weight.device
        products = product_dtype(dtype, self.device)
        self.stored = weight.dtype if products == torch.float32 else products
        self.folder = Path(folder) / fingerprint(self.tower, processor, self.stored)[:24]
        self.shards = self._index()

    def _index(self) -> dict[str, tuple[Path, str]]:
        """The shard of each key, and its name there. A file that cannot be read is as if it were not there."""
        shards = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    shards |= {name.partition(".")[0]: (path, name) for name in list(file.keys())}
            except (SafetensorError, OSError):
                print(f"{path} cannot be read: its features are computed again")
        return shards

    # ------------------------------------------------------------ before the training
    def fill(self, pictures: Iterable[Path], workers: int, skip_broken: bool) -> None:
        """Compute the features that are missing, after saying how much of the disk they take; UserError where it has no
        room.

        A shard is whole or absent, so a run that was killed goes on with the next one. Pictures that cannot be read are
        a UserError, or with `skip_broken` left to `of`. Several processes share the pictures out among them.
        """
        pictures = list(dict.fromkeys(pictures))
        agree(lambda: self._fill(pictures[rank() :: world_size()], workers, skip_broken))
        if world_size() > 1:
            self.shards = self._index()

    def _fill(self, pictures: list[Path], workers: int, skip_broken: bool) -> None:
        hidden = None if is_first() else True
        with ThreadPool(max(1, workers)) as pool:
            hashed = pool.imap(key_or_none if skip_broken else key_of, pictures, 16)
            shown = tqdm(hashed, "hashing the pictures", len(pictures), leave=False, disable=hidden)
            keys = {key: picture for key, picture in zip(shown, pictures, strict=True) if key}
            missing = [(key, path) for key, path in keys.items() if key not in self.shards]
            if not missing:
                return print(f"the features of all {len(pictures)} pictures are in {self.folder}")
            each = (
                self.processor.count_image_tokens("any picture") * self.tower.config.hidden_size * self.stored.itemsize
            )
            self._announce(len(missing), len(pictures), each)
            size = min(max(1, SHARD_BYTES // each), 4096)
            for first in tqdm(range(0, len(missing), size), "computing features", leave=False, disable=hidden):
                self._write_shard(missing[first : first + size], pool, skip_broken)

    def _announce(self, num_missing: int, num_pictures: int, each: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache-features {self.folder.parent} cannot be a folder: {error.strerror}") from None
        # about as many in the other processes
        num_missing, num_pictures = num_missing * world_size(), num_pictures * world_size()
        needed, free = num_missing * each, shutil.disk_usage(self.folder).free
        takes = f"take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
        line = f"the features of {num_missing} of {num_pictures} pictures {takes}"
        if needed + SPARE > free:
            raise UserError(f"{line}: leave out --cache-features, or name a folder on another disk")
        print(f"{line} in {self.folder}")

    def _write_shard(self, missing: list[tuple[str, Path]], pool: ThreadPool, skip_broken: bool) -> None:
        features = {}
        for first in range(0, len(missing), AT_ONCE):
            some = missing[first : first + AT_ONCE]
            pixels = pool.map(lambda pair: self._pixels(*pair, skip_broken), some)
            keys = [key for (key, _), pixel_values in zip(some, pixels, strict=True) if pixel_values is not None]
            if keys:
                looked_at = self._look(torch.cat([one for one in pixels if one is not None]))  # (N, P, C)
                features |= {f"{key}.{checksum(one)}": one.clone() for key, one in zip(keys, looked_at, strict=True)}
        if features:
            path = self.folder / f"{hashlib.sha256(''.join(features).encode()).hexdigest()[:24]}.safetensors"
            try:
                write_atomically(path, lambda temporary: save_file(features, temporary))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
            self.shards |= {name.partition(".")[0]: (path, name) for name in features}

    def _pixels(self, key: str, path: Path, skip_broken: bool) -> Tensor | None:
        try:
            pixel_values = self.processor.image_inputs(path)["pixel_values"]
        except UserError as error:
            if skip_broken:
                return None
            raise UserError(f"{str(error).rstrip('.')}; --skip-broken leaves such records out") from None
        if key_of(path) != key:
            raise UserError(f"{path} was changed while it was read: start again")
        return pixel_values

    @torch.no_grad()
    def _look(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, E, E) -> (N, P, C), as in a step of the training."""
        with autocast(self.dtype, self.device):
            return self.tower(pixel_values.to(self.device)).to(self.stored).cpu()

    # ------------------------------------------------------------ in the training
    def of(self, picture: Path) -> dict[str, Tensor]:
        """vision_features (1, P, C) of a picture, for a batch; UserError where it cannot be read or is another one than
        before the training.
        """
        key = key_of(picture)
        if key not in self.shards:
            open_image(picture)  # a broken picture is told in its own words
            raise UserError(f"{picture} was changed after its features were computed: start again with --resume")
        path, name = self.shards[key]
        try:
            with safe_open(path, "pt") as file:
                features = file.get_tensor(name)  # (P, C)
            if name != f"{key}.{checksum(features)}":
                raise OSError("changed on the disk")
            return {"vision_features": features[None]}  # (1, P, C)
        except (SafetensorError, OSError):
            raise UserError(f"{path} is damaged: remove it, and --resume computes its features again") from None


def key_of(picture: Path) -> str:
    return hashlib.sha256(read_file(picture)).hexdigest()


def key_or_none(picture: Path) -> str | None:
    """None for a file that cannot be read."""
    try:
        return key_of(picture)
    except UserError:
        return None


def checksum(features: Tensor) -> str:
    return f"{zlib.crc32(features.contiguous().view(torch.uint8).numpy()):08x}"


def fingerprint(tower, processor: Processor, stored: torch.dtype) -> str:
    """SHA-256 of what features depend on besides the picture."""
    prepared = {name: getattr(processor, name) for name in ("image_size", "pad", "mean", "std", "resample", "squash")}
    settings = [VERSION, str(stored), asdict(tower.config), tower.feature_layer, tower.keep_cls, prepared]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
