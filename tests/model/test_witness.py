"""An outside witness: sentence-transformers' CrossEncoder gives the logits of `original`."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3VLProcessor

from mrr.config import DEFAULT_INSTRUCTION
from mrr.model.load import LoadedModel
from mrr.model.prompt import QWEN_RERANKER
from tests.model.helpers import DENSE, STAGES, scorer
from tests.tiny import DEVICE, picture


def chat_template() -> str:
    head, tail = QWEN_RERANKER.document_first.split("{document}")
    head = head.replace("{instruction}", DEFAULT_INSTRUCTION)
    middle, end = tail.split("{query}")
    content = (
        "{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for c in m.content -%}"
        "{%- if c.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
        "{%- else -%}{{ c.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    )

    def each(role: str) -> str:
        loop = "{%- for m in messages -%}{%- if m.role == '" + role + "' -%}"
        return loop + content + "{%- endif -%}{%- endfor -%}"

    def literal(text: str) -> str:
        return "{{ " + repr(text) + " }}"

    return "".join([literal(head), each("document"), literal(middle), each("query"), literal(end)])


class ImageOnlyProcessor(Qwen3VLProcessor):
    """Without torchvision the video slot cannot be filled; it is read from this signature."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def test_cross_encoder_agrees_in_logit_and_in_order(
    qwen3: LoadedModel, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import transformers
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    shutil.copytree(qwen3.name, tmp_path, dirs_exist_ok=True)
    processor = ImageOnlyProcessor(
        image_processor=qwen3.image_processor,
        tokenizer=qwen3.tokenizer,
        chat_template=chat_template(),
    )
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(
        transformers.AutoProcessor,
        "from_pretrained",
        lambda *args, **kwargs: ImageOnlyProcessor.from_pretrained(tmp_path),
    )
    s = scorer(qwen3, replace(DENSE, instruction=DEFAULT_INSTRUCTION))
    witness = sentence_transformers.CrossEncoder(
        modules=[
            Transformer(str(tmp_path), transformer_task="any-to-any"),
            LogitScore(s.encoder.positive_id, s.encoder.negative_id),
        ],
        device=DEVICE,
    )
    pictures = [picture(i, (192, 128)) for i in range(6)]
    theirs = witness.predict([("red fox", p) for p in pictures], activation_fn=torch.nn.Identity())
    ours = [s.score_original(["red fox"], [s.preprocess(p)], STAGES)[0] for p in pictures]
    assert np.abs(np.subtract(theirs, ours)).max() < 1e-4
    assert np.argsort(theirs).tolist() == np.argsort(ours).tolist()
    assert np.ptp(ours) > 1e-2
