"""Draw 40 prompts with two seeds each through the stock QwenImagePipeline, eight prompts a row, each over its seeds.

None of the prompts is worded as a training caption. The last ten ask for a colour.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImagePipeline
from PIL import Image, ImageDraw

PROMPTS = """one fox, noto style; the penguin, twemoji style; one frog, fluent flat style; the owl, emojione style;
one octopus, twemoji style; the elephant, noto style; one butterfly, twemoji style; the turtle, emojione style;
one banana, twemoji style; the pineapple, noto style; some cherries, fluent flat style; the pizza, twemoji style;
one hamburger, noto style; the cupcake, emojione style; one mushroom, twemoji style; the strawberry, fluent flat style;
one rocket, fluent flat style; the sailboat, noto style; one bicycle, twemoji style; the airplane, noto style;
one house, fluent flat style; the tent, emojione style; one guitar, twemoji style; the umbrella, noto style;
one key, emojione style; the trophy, twemoji style; one cactus, noto style; the sunflower, fluent flat style;
one snowman, twemoji style; the ghost, fluent high contrast style;
one blue heart, fluent flat style; the green apple, noto style; one purple umbrella, twemoji style;
the pink car, noto style; one yellow star, emojione style; the orange fish, twemoji style; one red balloon, noto style;
the green book, fluent flat style; one blue bird, twemoji style; the red dress, fluent flat style"""
COLUMNS, CELL, LABEL = 8, 132, 14


@torch.no_grad()
def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=Path, default=Path("work/model"))
    arguments.add_argument("--out", type=Path, default=Path("sheet.png"))
    arguments.add_argument("--steps", type=int, default=25)
    arguments.add_argument("--guidance", type=float, default=4.0)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    a = arguments.parse_args()
    prompts = [p.strip() for p in PROMPTS.replace("\n", " ").split(";")]
    pipe = QwenImagePipeline.from_pretrained(a.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    height = LABEL + CELL * len(a.seeds)
    sheet = Image.new("RGB", (COLUMNS * CELL, (len(prompts) + COLUMNS - 1) // COLUMNS * height), (235, 235, 235))
    draw = ImageDraw.Draw(sheet)
    for row, seed in enumerate(a.seeds):
        drawn = []
        for i in range(0, len(prompts), 20):
            part = prompts[i:i + 20]
            drawn.extend(pipe(part, negative_prompt=[""] * len(part), true_cfg_scale=a.guidance, height=128, width=128,
                              num_inference_steps=a.steps, output_type="np",
                              generator=[torch.Generator().manual_seed(seed) for _ in part]).images)
        for k, picture in enumerate(drawn):
            left, top = k % COLUMNS * CELL + 2, k // COLUMNS * height + LABEL + row * CELL
            sheet.paste(Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8)), (left, top))
            draw.text((left, top - row * CELL - LABEL + 1), prompts[k].removesuffix(" style"), fill=(60, 60, 60))
    sheet.save(a.out, optimize=True)


if __name__ == "__main__":
    main()
