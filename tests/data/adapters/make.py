#!/usr/bin/env python3
"""Makes the adapters in this directory with the library that people train them with.

    make.py OUT_DIR        needs torch, transformers, peft

    base/                  one layer of a Llama, bfloat16, random
    plain/                 LoRA on attention and MLP, rank 4
    dora/                  DoRA of rank 4, its magnitudes moved as training moves them
    dora-rslora/           the same with rank-stabilised scaling, on one module
    exact/<name>.safetensors   merged weight minus base weight, float32, as the library computes it
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

BASE = "acme/Tiny-Llama-0.1B"


def model():
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=24, max_position_embeddings=64, tie_word_embeddings=True,
    )
    # Weights that bfloat16 holds exactly, so that the file and this process agree.
    made = LlamaForCausalLM(config).to(torch.bfloat16).to(torch.float32)
    made.config.name_or_path = BASE
    made.name_or_path = BASE
    return made


def adapter(out, name, **options):
    base = model()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    torch.manual_seed(hash_of(name))
    tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            if "lora_" in key and "magnitude" not in key:
                value.mul_(0.1)
            if "magnitude" in key:
                value.mul_(1 + 0.02 * torch.randn_like(value))
    tuned.peft_config["default"].base_model_name_or_path = BASE
    tuned.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    merged = tuned.merge_and_unload().state_dict()
    deltas = {key: (merged[key] - before[key]).contiguous() for key in before if not torch.equal(merged[key], before[key])}
    (out / "exact").mkdir(exist_ok=True)
    save_file(deltas, out / "exact" / f"{name}.safetensors")


def hash_of(text):
    return sum(text.encode())


def main():
    out = pathlib.Path(sys.argv[1])
    base = model()
    base.to(torch.bfloat16).save_pretrained(out / "base")
    (out / "base" / "generation_config.json").unlink(missing_ok=True)
    adapter(out, "plain", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"])
    adapter(out, "dora", r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"])
    adapter(out, "dora-rslora", r=4, lora_alpha=8, use_dora=True, use_rslora=True, target_modules=["k_proj"])
    (out / "exact" / "plain.safetensors").unlink()
    for path in sorted(out.rglob("*.json")):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")


main()
