"""Loading: what is refused by name, what identifies a checkpoint."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from mrr.errors import InputRejected, MRRError, UnsupportedModel
from mrr.model.checkpoint import check_supported
from mrr.model.load import check_rotary, load_model
from tests.tiny import DEVICE, save_checkpoint


def config_of(checkpoints, **changes):
    config = AutoConfig.from_pretrained(checkpoints["qwen2_vl"])
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_a_head_of_its_own_is_refused_by_name(checkpoints) -> None:
    with pytest.raises(UnsupportedModel, match="JinaVLForRanking"):
        check_supported(config_of(checkpoints, architectures=["JinaVLForRanking"]))


def test_another_model_type_is_refused_by_name(checkpoints) -> None:
    config = config_of(checkpoints, architectures=["LlavaForConditionalGeneration"])
    config.model_type = "llava"
    with pytest.raises(UnsupportedModel, match="llava"):
        check_supported(config)


def test_sliding_windows_are_refused(checkpoints) -> None:
    config = config_of(checkpoints)
    config.text_config.use_sliding_window = True
    with pytest.raises(UnsupportedModel, match="sliding"):
        check_supported(config)


def test_linear_attention_layers_are_refused(checkpoints) -> None:
    config = config_of(checkpoints)
    config.text_config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        check_supported(config)


def test_rounded_rotary_frequencies_are_refused(checkpoints) -> None:
    """model.to(bf16) rounds them in silence; loading with dtype= does not."""
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.bfloat16)
    check_rotary(loaded.model)
    with pytest.raises(UnsupportedModel, match="inv_freq"):
        check_rotary(loaded.model.to(torch.bfloat16))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(InputRejected, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(InputRejected, match="The name of the checkpoint is empty"):
        load_model("")
    with pytest.raises(InputRejected, match="no checkpoint folder"):
        load_model(tmp_path / "nothing")


def test_pickled_weights_are_refused(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save({}, tmp_path / "pytorch_model.bin")
    weights.unlink()
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was read"))
    with pytest.raises(InputRejected, match="pickled weights are refused"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_checkpoint_that_lacks_weights_is_refused_and_never_filled_at_random(
    family, tmp_path, checkpoints
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints[family], folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if ".layers.1.mlp." in name and "visual" not in name)
    save_file({k: v for k, v in weights.items() if k != gone}, file, {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"1 tensors of copy.*layers\.1\.mlp"):
        load_model(folder, device=DEVICE)
    save_file({**weights, gone: weights[gone][:1].clone()}, file, {"format": "pt"})
    with pytest.raises(UnsupportedModel, match="copy"):
        load_model(folder, device=DEVICE)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnsupportedModel, match="damaged"):
        load_model(folder, device=DEVICE)


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json"])
def test_a_checkpoint_that_lacks_a_file_is_refused_by_its_name(file, tmp_path, checkpoints) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    (folder / file).unlink()
    with pytest.raises(InputRejected, match=f"copy has no {file}"):
        load_model(folder, device=DEVICE)


def test_a_damaged_config_is_refused_in_a_sentence(tmp_path, checkpoints) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputRejected, match=r"config\.json in the folder copy is not JSON"):
        load_model(folder, device=DEVICE)


@pytest.mark.parametrize("device", ["foo", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(device, checkpoints) -> None:
    with pytest.raises(InputRejected, match=f"no device {device} here"):
        load_model(checkpoints["qwen3_vl"], device=device)


def test_a_device_that_computes_nothing_is_refused(checkpoints) -> None:
    with pytest.raises(InputRejected, match="meta computes nothing"):
        load_model(checkpoints["qwen3_vl"], device="meta")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"),
        ("preprocessor_config.json", "{"),
        ("preprocessor_config.json", "[]"),
        ("preprocessor_config.json", '{"size": {"height": 9, "width": 9}}'),
        ("preprocessor_config.json", '{"patch_size": null}'),
    ],
)
def test_a_damaged_tokenizer_or_image_processor_is_refused_by_its_file(
    file, content, tmp_path, checkpoints
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    (folder / file).write_text(content)
    with pytest.raises(InputRejected, match=f"{file} in the folder copy is damaged"):
        load_model(folder, device=DEVICE)


def test_an_image_processor_of_another_model_is_refused(tmp_path, checkpoints) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    (folder / "preprocessor_config.json").write_text("{}")  # which stands for Qwen2-VL's sizes
    with pytest.raises(InputRejected, match=r"\(14, 2, 2\), but its model reads \(16, 2, 2\)"):
        load_model(folder, device=DEVICE)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused_by_their_method(method, tmp_path, checkpoints) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UnsupportedModel, match=f"quantised by {method}"):
        load_model(folder, device=DEVICE)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"band": [2, 4]}, "it has band but no exit_layer"),
        ({"exit_layer": 4}, "it has exit_layer but no band"),
        ({"band": ["two", 4], "exit_layer": 4}, "whole number"),
        ({"band": 2, "exit_layer": 4}, "whole number"),
        ({"band": [2, 4], "exit_layer": "four"}, "whole number"),
        ({"band": [2, 4, 5], "exit_layer": 5}, "whole number"),
        ({"band": [4, 2], "exit_layer": 4}, "does not lie within"),
        ({"band": [2, 5], "exit_layer": 4}, "does not lie within the 4 layers"),
        ({"band": [2, 4], "exit_layer": 40}, "exit_layer is 40, but the model has"),
        ({"keep_ratio": "half"}, "keep_ratio is 'half'; it must be a number"),
        ({"keep_ratio": 0}, r"keep_ratio is 0\.0; it must be in"),
        ({"pruner": ["none"]}, r"pruner is \['none'\]; choose one of embedder"),
        ({"instruction": 7}, "instruction is 7; it must be text"),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels is 9 and max_pixels 8"),
        ({"template": "mine"}, "template 'mine' is none of qwen-reranker"),
        ([2, 4], "no JSON object"),
    ],
)
def test_what_cannot_be_used_of_the_training_is_refused_with_file_and_reason(
    section, words, tmp_path, checkpoints
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"mini_reranker": section}))
    with pytest.raises(InputRejected, match=rf"config\.json in the folder copy.*{words}"):
        load_model(folder, device=DEVICE)


def test_a_checkpoint_that_may_not_be_read_is_refused(tmp_path, checkpoints, monkeypatch) -> None:
    exists = Path.exists

    def locked(path: Path, **options: bool) -> bool:  # as for anybody but root
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", locked)
    with pytest.raises(InputRejected, match=r"^config\.json may not be read"):
        load_model(tmp_path, device=DEVICE)


def test_one_changed_weight_changes_the_digest(tmp_path, checkpoints) -> None:
    shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "same")
    same = load_model(tmp_path / "same", device=DEVICE)
    assert same.digest == load_model(checkpoints["qwen3_vl"], device=DEVICE).digest
    save_checkpoint(tmp_path / "other", seed=1)
    assert load_model(tmp_path / "other", device=DEVICE).digest != same.digest


def test_another_tokenizer_changes_the_digest(tmp_path, checkpoints) -> None:
    """It turns the same words into other ids."""
    shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    there = load_model(checkpoints["qwen3_vl"], device=DEVICE)
    assert load_model(tmp_path / "other", device=DEVICE).digest != there.digest


def test_what_a_checkpoint_says_of_its_training_is_read(tmp_path) -> None:
    folder = save_checkpoint(tmp_path, band=[1, 3], exit_layer=4, keep_ratio=0.5)
    assert load_model(folder, device=DEVICE).trained == {
        "band": [1, 3],
        "exit_layer": 4,
        "keep_ratio": 0.5,
    }


Q_PROJ = r".*language_model.*\.q_proj"


def save_adapter(folder, base, rename=lambda name: name, targets=Q_PROJ):
    """A LoRA with random weights, its tensors under other names if asked."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    model = load_model(base, device=DEVICE, fused=False).model
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    described = json.loads((folder / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(described))
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {rename(name): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("old", [False, True])
def test_a_lora_adapter_is_merged_into_its_base(tmp_path, checkpoints, old: bool) -> None:
    """Also under the names that adapters had before the language model moved."""
    base = load_model(checkpoints["qwen3_vl"], device=DEVICE)
    save_adapter(
        tmp_path,
        checkpoints["qwen3_vl"],
        lambda name: name.replace(".language_model", "") if old else name,
    )
    (tmp_path / "mini_reranker.json").write_text('{"band": [1, 2], "exit_layer": 2}')
    merged = load_model(tmp_path, device=DEVICE)
    for mine, plain in zip(merged.lm.layers, base.lm.layers, strict=True):
        differ = (mine.self_attn.qk_proj.weight != plain.self_attn.qk_proj.weight).any(1)
        n_rows = mine.self_attn.n_heads * mine.self_attn.head_dim
        assert differ[:n_rows].any() and not differ[n_rows:].any(), "it was made for Q alone"
    assert merged.digest != base.digest
    assert merged.trained == {"band": [1, 2], "exit_layer": 2}
    assert "lora" not in "".join(name for name, _ in merged.model.named_modules())


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("adapter_config.json", {"lora_alpha": 99}),
        ("mini_reranker.json", {"keep_ratio": 0.25}),
    ],
)
def test_what_an_adapter_says_beside_its_weights_changes_the_digest(
    file, change, tmp_path, checkpoints
) -> None:
    save_adapter(tmp_path, checkpoints["qwen3_vl"])
    (tmp_path / "mini_reranker.json").write_text('{"keep_ratio": 0.5}')
    before = load_model(tmp_path, device=DEVICE).digest
    assert load_model(tmp_path, device=DEVICE).digest == before
    described = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(described | change))
    assert load_model(tmp_path, device=DEVICE).digest != before


def test_another_base_in_the_same_place_changes_an_adapters_digest(tmp_path) -> None:
    base, adapter = save_checkpoint(tmp_path / "base"), tmp_path / "adapter"
    save_adapter(adapter, base)
    before = load_model(adapter, device=DEVICE).digest
    save_checkpoint(base, seed=1)
    assert load_model(adapter, device=DEVICE).digest != before


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_vl"])
def test_an_adapter_of_the_tower_is_merged_too(tmp_path, checkpoints, family, old: bool) -> None:
    base = load_model(checkpoints[family], device=DEVICE)
    save_adapter(
        tmp_path,
        checkpoints[family],
        lambda name: name.replace(".model.model.visual", ".model.visual") if old else name,
        targets=r".*visual.*\.(qkv|proj)",
    )
    merged = load_model(tmp_path, device=DEVICE)
    for mine, plain in zip(merged.tower.blocks, base.tower.blocks, strict=True):
        assert not torch.equal(mine.attn.qkv.weight, plain.attn.qkv.weight)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("peft_type", "PROMPT_TUNING", "of the kind PROMPT_TUNING"),
        ("peft_type", None, "of the kind None"),
        ("target_modules", ["nothing_like_it"], r"adapter_config\.json .* does not suit"),
        ("r", "two", r"adapter_config\.json .* does not suit"),
        ("base_model_name_or_path", ["a"], "set base_model_name_or_path"),
    ],
)
def test_an_adapter_whose_settings_cannot_be_used_is_refused(
    setting, value, words, tmp_path, checkpoints
) -> None:
    save_adapter(tmp_path, checkpoints["qwen3_vl"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    with pytest.raises(MRRError, match=words):
        load_model(tmp_path, device=DEVICE)


@pytest.mark.parametrize("nbytes", [0, 100])
def test_a_damaged_adapter_is_refused(nbytes: int, tmp_path, checkpoints) -> None:
    save_adapter(tmp_path, checkpoints["qwen3_vl"])
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:nbytes])
    with pytest.raises(InputRejected, match=r"adapter_model\.safetensors in the folder .* damaged"):
        load_model(tmp_path, device=DEVICE)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, checkpoints) -> None:
    save_adapter(tmp_path, checkpoints["qwen3_vl"], lambda name: name.replace("layers", "blocks"))
    with pytest.raises(UnsupportedModel, match="do not fit"):
        load_model(tmp_path, device=DEVICE)


def test_an_adapter_that_does_not_name_its_base_is_refused(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(InputRejected, match="set base_model_name_or_path"):
        load_model(tmp_path, device=DEVICE)


def test_a_hub_repository_without_a_checkpoint_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mrr.model.checkpoint.snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(InputRejected, match="org/quantised on the hub holds no config"):
        load_model("org/quantised", revision="abc123", device=DEVICE)


def test_a_revision_of_a_folder_is_refused_instead_of_ignored(checkpoints) -> None:
    with pytest.raises(InputRejected, match="qwen3_vl is a folder here"):
        load_model(checkpoints["qwen3_vl"], revision="abc123", device=DEVICE)


def test_a_hub_id_is_fetched_at_its_revision_without_pickles_or_code(
    checkpoints, monkeypatch
) -> None:
    asked = {}

    def hub(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(checkpoints["qwen3_vl"])

    monkeypatch.setattr("mrr.model.checkpoint.snapshot_download", hub)
    loaded = load_model("org/checkpoint", revision="abc123", device=DEVICE)
    assert (asked["name"], asked["revision"]) == ("org/checkpoint", "abc123")
    assert not any(fnmatch("model.bin", pattern) for pattern in asked["allow_patterns"])
    assert not any(fnmatch("modeling.py", pattern) for pattern in asked["allow_patterns"])
    assert loaded.digest == load_model(checkpoints["qwen3_vl"], device=DEVICE).digest
    load_model("org/checkpoint@def456", device=DEVICE)
    assert (asked["name"], asked["revision"]) == ("org/checkpoint", "def456")


@pytest.mark.parametrize(
    ("name", "warned"), [("org/x", True), ("org/x@main", True), ("org/x@" + "0a" * 20, False)]
)
def test_what_is_not_pinned_to_a_commit_is_warned_about(
    name: str, warned: bool, checkpoints, monkeypatch, caplog
) -> None:
    folder = str(checkpoints["qwen3_vl"])
    monkeypatch.setattr("mrr.model.checkpoint.snapshot_download", lambda *a, **k: folder)
    load_model(name, device=DEVICE)
    assert ("name it org/x@<commit>" in caplog.text) is warned


def test_a_name_that_the_hub_does_not_know_is_refused_in_a_sentence(monkeypatch) -> None:
    def hub(name: str, **options: object) -> str:
        raise RepositoryNotFoundError(
            "404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        )

    monkeypatch.setattr("mrr.model.checkpoint.snapshot_download", hub)
    with pytest.raises(InputRejected, match="org/nothing is neither a folder here nor"):
        load_model("org/nothing", revision="abc123")
