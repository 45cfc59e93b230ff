#!/usr/bin/env python3
"""PyTorch's gradient of CLIP's states by the embeddings they begin as, for the tests.

    clip_gradients.py tests/goldens/sd15-tiny

Reads clip.input_ids of the pipeline's goldens and writes goldens_clip.safetensors: `clip.grad_out` [B, T, C], what the last states (after
the final norm) are told, and `clip.grad_embedded` [B, T, C], what arrives at word vectors plus position vectors. In f64, stored as f32.
Needs torch, transformers, safetensors and numpy.
"""
import sys
import numpy, torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

folder = sys.argv[1]
clip = CLIPTextModel.from_pretrained(folder + "/text_encoder").double().eval().requires_grad_(False)
text = getattr(clip, "text_model", clip)
ids = load_file(folder + "/goldens.safetensors")["clip.input_ids"].long()
embedded = text.embeddings(ids).requires_grad_(True)
tokens = ids.shape[1]
causal = torch.full((tokens, tokens), float("-inf"), dtype=torch.double).triu(1)[None, None].expand(len(ids), 1, tokens, tokens)
hidden = embedded
for layer in text.encoder.layers:
    out = layer(hidden, attention_mask=causal)
    hidden = out[0] if isinstance(out, tuple) else out
states = text.final_layer_norm(hidden)
reference = clip(ids).last_hidden_state
assert (states - reference).abs().max() < 1e-10, "not what transformers computes"
upstream = torch.tensor(numpy.random.Generator(numpy.random.PCG64(1)).standard_normal(states.shape).astype("float32"))
(states * upstream.double()).sum().backward()
save_file({"clip.grad_out": upstream.contiguous(), "clip.grad_embedded": embedded.grad.float().contiguous()}, folder + "/goldens_clip.safetensors")
