"""Write the demo's data set: 24 training and 8 test pictures as neon signs, a style that the base has never seen.

The signs are made from Fluent Emoji's flat drawings: the edges between their colours become glowing tubes on a dark wall.
"""
import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

STYLE = "neon sign"
TRAIN = ["red apple", "tulip", "fox", "octopus", "rocket", "house", "pizza", "key", "automobile", "balloon",
         "mushroom", "penguin", "strawberry", "bell", "umbrella", "sailboat", "cactus", "frog", "cupcake", "drum",
         "ringed planet", "crown", "sunflower", "teapot"]
TEST = ["guitar", "lemon", "owl", "bus", "trophy", "cherry blossom", "pear", "turtle"]
SIZE, DRAWN = 128, 108  # the drawing is shrunk to leave room for the glow


def blur(x, deviation):
    """Gaussian of a [H, W, C] picture, edges repeated."""
    reach = int(3 * deviation) + 1
    kernel = np.exp(-np.arange(-reach, reach + 1) ** 2 / (2 * deviation**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(3)], mode="edge")
        x = sum(w * np.take(padded, range(j, j + x.shape[axis]), axis) for j, w in enumerate(kernel))
    return x


def neon(rgba):
    """[128, 128, 4] uint8, straight alpha -> the sign, [128, 128, 3] uint8."""
    room = Image.new("RGBA", (SIZE, SIZE))
    room.paste(Image.fromarray(rgba).resize((DRAWN, DRAWN), Image.LANCZOS), ((SIZE - DRAWN) // 2,) * 2)
    picture = np.asarray(room).astype(np.float32) / 255
    alpha, painted = picture[..., 3:], picture[..., :3] * picture[..., 3:]
    soft = blur(np.concatenate([painted, alpha], -1), 1.0)
    down, right = np.diff(soft, axis=0, append=soft[-1:]), np.diff(soft, axis=1, append=soft[:, -1:])
    tube = np.clip(np.sqrt((down**2 + right**2).sum(-1, keepdims=True)) * 5.5 - 0.25, 0, 1)
    near = blur(painted, 2.5) / np.maximum(blur(alpha, 2.5), 1e-3)
    top, low = near.max(-1, keepdims=True), near.min(-1, keepdims=True)
    pure = 0.12 + 0.88 * (near - low) / np.maximum(top - low, 0.08)
    light = tube * np.where(top - low > 0.12, pure, np.array([0.55, 0.9, 1.0]))  # greys shine in ice blue
    depth = np.linspace(0, 1, SIZE)[:, None, None]
    wall = np.array([0.055, 0.035, 0.13]) * (1 - depth) + np.array([0.12, 0.03, 0.16]) * depth
    glow = blur(light, 3.0) * 0.72 + blur(light, 9.0) * 0.88
    return np.round(np.clip(wall + glow + 0.9 * light + 0.35 * blur(tube, 0.6) ** 2, 0, 1) * 255).astype(np.uint8)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=Path("data"))
    arguments.add_argument("--out", type=Path, default=Path("demo-dataset"))
    a = arguments.parse_args()
    pictures = np.load(a.data / "pictures.npy", mmap_mode="r")
    meta = json.loads((a.data / "pictures.json").read_text())
    flat = {m["name"]: i for i, m in enumerate(meta) if m["style"] == "fluent flat" and not m["recoloured"]}
    for part, names in (("train", TRAIN), ("test", TEST)):
        folder = a.out / part
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            stem = name.replace(" ", "-")
            Image.fromarray(neon(np.array(pictures[flat[name]]))).save(folder / f"{stem}.png", optimize=True)
            (folder / f"{stem}.txt").write_text(f"{name}, {STYLE} style\n")


if __name__ == "__main__":
    main()
