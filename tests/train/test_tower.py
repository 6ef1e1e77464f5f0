import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from mrr.train import tower
from mrr.train.eyes import see
from mrr.train.pair import build
from mrr.train.stages import Workshop
from tests.train.conftest import SIZES


def _page(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (height, width), dtype=torch.uint8, generator=generator)


def _windows(page: torch.Tensor) -> torch.Tensor:
    rows, cols = page.shape[0] // 256, page.shape[1] // 256
    return page.view(rows, 256, cols, 256).transpose(1, 2).reshape(-1, 256, 256)


def test_a_batch_of_windows_gives_what_the_stock_tower_gives_for_the_page(shop: Workshop) -> None:
    model = build(shop.tokenizer, SIZES)
    page = _page(512, 768)
    processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 1024, "longest_edge": 1024 * 1024},
    )
    image = Image.fromarray(page.numpy()).convert("RGB")
    inputs = processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        stock = model.model.get_image_features(**inputs).pooler_output[0]
        ours = see(model.model.visual, _windows(page)[None], (16, 24))[0]
    difference = (stock - ours).abs().max().item()
    assert difference < 1e-4, f"max difference {difference}, scale {stock.abs().max()}"


def test_a_window_does_not_see_its_neighbours(shop: Workshop) -> None:
    visual = build(shop.tokenizer, SIZES).model.visual
    page = _page(256, 512)
    changed = page.clone()
    changed[:, 256:] = 0
    with torch.no_grad():
        before, _ = tower.encode(visual, _windows(page), tap=0)
        after, _ = tower.encode(visual, _windows(changed), tap=0)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_aimed_heads_look_at_the_neighbouring_patch_before_training(shop: Workshop) -> None:
    visual = build(shop.tokenizer, SIZES).model.visual
    attn = visual.blocks[0].attn
    heads, dim = attn.num_heads, attn.head_dim
    bias = attn.qkv.bias.detach().view(3, heads, 1, dim)
    cos, sin = tower.rope_tables(visual, torch.device("cpu"))
    q, k = tower.rotate(bias[0], cos, sin), tower.rotate(bias[1], cos, sin)
    positions = tower.patch_positions()
    middle = int(((positions - torch.tensor([8, 8])).abs().sum(1) == 0).nonzero())
    looked_at = positions[(q @ k.mT)[:, middle].argmax(-1)]
    assert looked_at.tolist() == [[8, 7], [8, 9]]  # left, then right


def test_whitened_patches_have_even_variance_and_equal_channels(shop: Workshop) -> None:
    visual = build(shop.tokenizer, SIZES).model.visual
    pages = torch.stack([_page(256, 256).float().cumsum(1).remainder(256).byte() for _ in range(4)])
    tower.whiten_patches(visual, pages)
    weight = visual.patch_embed.proj.weight.detach()
    assert torch.equal(weight[:, 0, 0], weight[:, 2, 0])
    out = tower.to_patches(pages).flatten(0, 1) @ weight.sum((1, 2)).flatten(1).T
    spread = out.std(0)
    assert spread.max() / spread.min() < 4
