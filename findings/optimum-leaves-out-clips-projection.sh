#!/usr/bin/env bash
# optimum-onnx 0.1.0, optimum 2.1.0, transformers 4.57.6, torch 2.13.0, onnx 1.23.2, onnxruntime 1.32.0, pillow 12.3.0
#
# Behaviour: transformers' CLIPVisionModelWithProjection returns `image_embeds`, the vectors that CLIP compares with
# texts. Exported to ONNX with the task feature-extraction, the only one that optimum has for it, the graph lacks the
# projection: its outputs are `last_hidden_state` and `pooler_output`, of the width before the projection. There is no
# warning, and config.json beside the graph still names CLIPVisionModelWithProjection and its projection_dim. The export
# of the whole CLIPModel has `image_embeds`, projected and already divided by their norm.
#
# Guess before running: the export of the model with projection has the output `image_embeds`.
#
# Output seen (a network of random weights, 32 values before the projection and 24 after):
#   model                          outputs of a picture
#   CLIPVisionModelWithProjection  last_hidden_state 32, pooler_output 32
#   CLIPModel                      image_embeds 24
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 torch==2.13.0 \
    onnx==1.23.2 onnxruntime==1.32.0 pillow==12.3.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2>log || { cat log; exit 1; }
import sys

import onnxruntime
import torch
from optimum.exporters.onnx import main_export
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

torch.manual_seed(0)
layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
vision = {**layers, "image_size": 32, "patch_size": 8, "projection_dim": 24}
text = {**layers, "vocab_size": 1000, "max_position_embeddings": 16, "projection_dim": 24}
models = [
    CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)),
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)),
]
found = []
for model in models:
    name = type(model).__name__
    model.save_pretrained(name)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(name)
    main_export(name, f"{name}-onnx", task="feature-extraction")
    session = onnxruntime.InferenceSession(f"{name}-onnx/model.onnx")
    outputs = {each.name: each.shape[-1] for each in session.get_outputs()}
    vectors = [f"{key} {outputs[key]}" for key in sorted(outputs) if key.split("_")[0] not in ("logits", "text")]
    found.append(", ".join(vectors))
print(f"{'model':<31}outputs of a picture")
for model, outputs in zip(models, found, strict=True):
    print(f"{type(model).__name__:<31}{outputs}")
sys.exit(found != ["last_hidden_state 32, pooler_output 32", "image_embeds 24"])
PYTHON
