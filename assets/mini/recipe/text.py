"""Tokenizer (Qwen2's byte-level BPE, 2048 ids) and the configuration of the small Qwen2.5-VL text encoder.

The pipeline drops the first 34 tokens of its prompt template. Qwen2's pre-tokenizer splits the template into exactly 34
pieces, so it encodes to 34 tokens here as long as every piece is one vocabulary entry: the template is part of the BPE
corpus, often enough that all of its words are merged.
"""
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATE = ("<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
            "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
            "<|im_start|>assistant\n")
DROPPED = 34
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
           "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
ADDED = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
         "<|repo_name|>", "<|file_sep|>"]
PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
VOCABULARY = 2048


def byte_pairs(corpus, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    return tokenizer


def write_tokenizer(captions, out):
    """Writes the files of a Qwen2Tokenizer and returns the number of its BPE entries."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plain = TEMPLATE.replace("{}", "")
    for token in SPECIAL:
        plain = plain.replace(token, "\n\n")
    tokenizer = byte_pairs(captions + plain.split("\n\n") * 20000, VOCABULARY - len(SPECIAL) - len(ADDED))
    tokenizer.model.save(str(out))
    size = tokenizer.get_vocab_size()
    added = {token: size + i for i, token in enumerate(SPECIAL + ADDED)}

    def described(token):
        return {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

    files = {
        "added_tokens": dict(sorted(added.items())),
        "special_tokens_map": {"additional_special_tokens": SPECIAL[1:], "eos_token": described("<|im_end|>"),
                               "pad_token": described("<|endoftext|>")},
        "tokenizer_config": {
            "add_bos_token": False, "add_prefix_space": False,
            "added_tokens_decoder": {str(i): dict(described(t), special=t in SPECIAL) for t, i in added.items()},
            "additional_special_tokens": SPECIAL[1:], "bos_token": None, "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>", "errors": "replace", "extra_special_tokens": {}, "model_max_length": 131072,
            "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None},
    }
    for name, content in files.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2))
    return size


def encoder_config(bpe, hidden=128, layers=4, heads=4, kv_heads=2, intermediate=320):
    from transformers import Qwen2_5_VLConfig
    ids = {token: bpe + i for i, token in enumerate(SPECIAL + ADDED)}
    text = dict(hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=VOCABULARY,
                max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1000000.0,
                rope_scaling={"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
                tie_word_embeddings=False, use_sliding_window=False, max_window_layers=layers,
                bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"],
                vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"])
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=hidden, patch_size=14,
                  spatial_merge_size=1, temporal_patch_size=1, window_size=112, fullatt_block_indexes=[0],
                  in_channels=3)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False,
                            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
                            vision_start_token_id=ids["<|vision_start|>"],
                            vision_end_token_id=ids["<|vision_end|>"])


def published_config(config):
    """The configuration with the keys of the published Qwen-Image text encoder (text fields also at the top)."""
    t, v = config.text_config, config.vision_config
    rope = {"mrope_section": t.rope_parameters["mrope_section"], "rope_type": "default", "type": "default"}
    shared = dict(attention_dropout=0.0, hidden_act="silu", initializer_range=0.02, use_cache=True,
                  rope_scaling=rope, rope_theta=t.rope_parameters["rope_theta"], max_window_layers=t.num_hidden_layers,
                  vision_start_token_id=config.vision_start_token_id,
                  vision_end_token_id=config.vision_end_token_id, vision_token_id=config.image_token_id - 1,
                  sliding_window=t.max_position_embeddings)
    for key in ("bos_token_id", "eos_token_id", "hidden_size", "intermediate_size", "max_position_embeddings",
                "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
                "use_sliding_window", "vocab_size"):
        shared[key] = getattr(t, key)
    vision = {key: getattr(v, key) for key in (
        "depth", "fullatt_block_indexes", "hidden_act", "hidden_size", "in_channels", "initializer_range",
        "intermediate_size", "num_heads", "out_hidden_size", "patch_size", "spatial_merge_size", "temporal_patch_size",
        "tokens_per_second", "window_size")}
    architecture = ["Qwen2_5_VLForConditionalGeneration"]
    text = dict(shared, architectures=architecture, image_token_id=None, video_token_id=None,
                model_type="qwen2_5_vl_text", sliding_window=None, layer_types=["full_attention"] * t.num_hidden_layers,
                torch_dtype="bfloat16")
    whole = dict(shared, architectures=architecture, image_token_id=config.image_token_id,
                 video_token_id=config.video_token_id, model_type="qwen2_5_vl", text_config=dict(sorted(text.items())),
                 tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.53.1",
                 vision_config=dict(vision, in_chans=3, model_type="qwen2_5_vl", spatial_patch_size=v.patch_size))
    return dict(sorted(whole.items()))
