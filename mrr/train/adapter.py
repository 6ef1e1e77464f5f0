"""What a fine-tuned adapter says of itself: which checkpoint it is for, and the band, exit,
pruning, prompt and size of pages that it was trained in.

Without them it would be served on another checkpoint, or otherwise than it learned, and nobody
would be told.
"""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel

from mrr.config import RerankConfig
from mrr.model.checkpoint import TRAINED, TRAINED_IN, local_folder
from mrr.model.load import LoadedModel


def save_adapter(
    adapted: PeftModel,
    loaded: LoadedModel,
    config: RerankConfig,
    template: str,
    folder: Path,
) -> Path:
    """Write folder / "adapter", which the engine loads as a checkpoint; returns it.

    loaded: the checkpoint that was adapted, under the name it was asked for; config: resolved.
    Where that is itself an adapter, folder / "base" gets its base with it merged in. Ends the
    adapted model: it is the checkpoint again.
    """
    adapter = folder / "adapter"
    (described,) = adapted.peft_config.values()
    given = Path(loaded.name).expanduser()
    is_stacked = (local_folder(loaded.name, None) / "adapter_config.json").exists()
    if is_stacked:
        described.base_model_name_or_path = str((folder / "base").resolve())
    elif given.is_dir():
        described.base_model_name_or_path = str(given.resolve())
    else:  # on the hub, not where its files lie on this machine
        hub_id, _, commit = loaded.name.partition("@")
        described.base_model_name_or_path, described.revision = hub_id, commit or None
    adapted.save_pretrained(str(adapter), save_embedding_layers=False)
    served = {name: getattr(config, name) for name in ("band", "exit_layer", *TRAINED_IN)}
    trained = {**served, "template": template}
    (adapter / TRAINED).write_text(json.dumps(trained), encoding="utf-8")
    if is_stacked:
        for part in (adapted.unload(), loaded.tokenizer, loaded.image_processor):
            part.save_pretrained(str(folder / "base"))
    return adapter
