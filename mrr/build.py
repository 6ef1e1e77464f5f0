"""The parts of a MiniReranker from names: which checkpoints, which store, checked before use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cache_db.directory import default_store
from cache_db.store import PageStore
from mrr.assets import assets
from mrr.config import RerankConfig
from mrr.errors import InputRejected, InvalidConfig, UnsupportedModel
from mrr.model.checkpoint import TRAINED_IN
from mrr.model.embedder import Embedder
from mrr.model.load import LoadedModel, load_model, share_tower
from mrr.model.prompt import PromptTemplate, template_for
from mrr.model.selfcheck import check_parity

MODELS = assets("models")
TINY = "tiny"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a MiniReranker is made of, loaded and checked against each other."""

    loaded: LoadedModel
    template: PromptTemplate
    embedder: Embedder | None


def load_parts(
    model: str | Path,
    embedder: str | Path | None,
    *,
    revision: str | None,
    embedder_revision: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
    template: str | None,
    self_check: bool,
) -> Parts:
    """Load a reranker and its embedder; arguments as in MiniReranker.from_pretrained.

    Raises UnsupportedModel where the two do not see the same visual tokens.
    """
    if model == TINY:
        model, embedder = bundled("tiny-reranker"), embedder or bundled("tiny-embedder")
        dtype = dtype or torch.float32  # what its published figures were measured in
    loaded = load_model(model, revision=revision, device=device, dtype=dtype)
    words = template_of(loaded, template)
    if self_check:
        check_parity(loaded, words)
    if embedder is None:
        return Parts(loaded, words, None)
    other = load_model(embedder, revision=embedder_revision, device=device, dtype=dtype, head=False)
    guide = Embedder(other)
    check_same_cells(loaded, guide.loaded)
    share_tower(loaded, guide.loaded)
    return Parts(loaded, words, guide)


def check_same_cells(loaded: LoadedModel, guide: LoadedModel) -> None:
    """Raise UnsupportedModel where a reranker and its embedder do not see the same tokens."""
    if guide.cell != loaded.cell:
        raise UnsupportedModel(
            f"The embedder's visual tokens are {guide.cell} pixels wide and the "
            f"reranker's {loaded.cell}; they must see the same tokens. Choose another embedder."
        )


def template_of(loaded: LoadedModel, requested: str | None) -> PromptTemplate:
    """The requested template, or the one of the checkpoint's training, or of its name."""
    return template_for(loaded.name, requested or loaded.trained.get("template"))


def open_store(store: str | Path | PageStore | None) -> PageStore:
    """The store itself, or the one in a folder; None is `default_store()`."""
    if isinstance(store, PageStore):
        return store
    if store == "":  # of an unset variable: neither the current folder nor the user's own store
        raise InputRejected("The name of the store's folder is empty. Give its path.")
    return PageStore(default_store() if store is None else Path(os.path.expanduser(store)))


def dense_store() -> PageStore:
    """Where K/V of `dense + reuse` lies: in memory, because it must not push pages off the disk.

    At full depth it is an order of magnitude larger, so it may take a quarter of the memory there
    is or 4 GiB, whichever is more, but never over half: the models need the rest.
    """
    there = _memory_bytes()
    memory_bytes = min(max(4 * 2**30, there // 4), there // 2)
    return PageStore(None, memory_bytes=memory_bytes, holds_pages=False)


def _memory_bytes() -> int:
    """Memory of this machine, or of the container that this process runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return machine


def trained_config(loaded: LoadedModel, config: RerankConfig | None) -> RerankConfig:
    """The given config, its open fields filled with what the checkpoint was trained for.

    Where only one of band and exit is open, the given one is kept as it is: a trained band is cut
    at an earlier exit, and a trained exit moves behind a band that ends later. Without a config
    pruning, instruction and bounds of pixels are the trained ones too.
    """
    if not isinstance(config, RerankConfig | None):
        raise InvalidConfig(f"config is of {type(config)}; it must be a RerankConfig.")
    if config is None:
        config = RerankConfig(**{k: v for k, v in loaded.trained.items() if k in TRAINED_IN})
    if "band" not in loaded.trained:
        return config
    (start, end), last = loaded.trained["band"], loaded.trained["exit_layer"]
    if config.band is not None:
        # An end beyond the model is left for `resolve` to refuse.
        last = min(max(last, config.band[1]), loaded.n_layers)
    exit_layer = last if config.exit_layer is None else config.exit_layer
    band = config.band or (min(start, exit_layer - 1), min(end, exit_layer))
    return replace(config, band=band, exit_layer=exit_layer)


def bundled(name: str) -> Path:
    """Folder of a checkpoint that ships with the project."""
    folder = MODELS / name
    if not folder.is_dir():
        raise InputRejected(
            f"The bundled {name} is not in this installation; pass a checkpoint folder or hub id."
        )
    return folder
