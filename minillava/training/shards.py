"""A checkpoint of several processes: a folder with one safetensors file of each, which holds its rows of every tensor.

torch.distributed.checkpoint writes them, and gives any number of processes the rows that each of them needs. Of its
storages the one for safetensors is used, since the others unpickle what they read.

    FOLDER/shard-00001-....safetensors, ...        FOLDER/checkpoint.json: the metadata, and the SHA-256 of each file; written last
"""

import hashlib
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from minillava.distributed import agree, all_gather, all_gather_objects, is_first, rank, world_size
from minillava.files import read_json, write_json

SUMMARY = "checkpoint.json"


def write_shards(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write into the empty folder `folder`; all processes must call this.

    OSError, in all of them, where one could not write.
    """
    import torch.distributed.checkpoint as dcp  # here and below: it takes half a second, and few trainings need it
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise OSError(str(next(iter(error.failures.values()))[0])) from None
    checksums = {}
    for some in all_gather_objects(own_checksums(folder)):
        checksums |= some
    if is_first():
        write_json(folder / SUMMARY, sealed({**metadata, "sha256": checksums}))


def sealed(values: dict) -> dict:
    """The same with a checksum of their own."""
    return {**values, "seal": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}


def own_checksums(folder: Path) -> dict[str, str]:
    """Each process reads every N-th file: {name: SHA-256}."""
    files = sorted(folder.glob("*.safetensors"))[rank() :: world_size()]
    return {path.name: checksum_of(path) for path in files}


def checksum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_metadata(folder: Path) -> dict[str, str]:
    """The metadata; UserError or ValueError, in all processes, where a file is missing or was changed."""
    found = agree(lambda: read_json(folder / SUMMARY))
    metadata = {name: value for name, value in found.items() if name != "seal"}
    whole = found == sealed(metadata)
    checksums, known = own_checksums(folder), metadata.pop("sha256", None)
    held = set().union(*all_gather_objects(set(checksums)))
    fits = whole and held == set(known) and all(known[name] == digest for name, digest in checksums.items())
    if not all_gather(fits).all():
        raise ValueError("a file of it is missing or was changed")
    return metadata


def names_in(folder: Path) -> dict[str, torch.Size]:
    """{name: shape} of the tensors."""
    import torch.distributed.checkpoint as dcp

    described = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tensor.size for name, tensor in described.items()}


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, whole ones or the rows of each process, in place."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # a single process is fine
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
