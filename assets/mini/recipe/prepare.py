"""Render the training pictures of the mini model: 128x128 RGBA emoji in seven drawing styles, with captions.

Input (--raw): the npm packages that `make.sh` unpacks there. Output (--out):
  pictures.npy   N x 128 x 128 x 4 uint8, straight alpha
  pictures.json  one row per picture: name (CLDR), aliases, style, subject (name without its colour), colour or
                 null, recoloured, split (train or val: about 5 % of the names are held out), group (emojibase)
"""
import argparse
import colorsys
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from concepts import COLOURS, CORE, HUES

SIZE = 128
# Folder of the package and the word of the caption.
STYLES = {"noto": "noto", "noto-v1": "blob", "twemoji": "twemoji", "emojione": "emojione", "fxemoji": "firefox",
          "fluent-emoji-flat": "fluent flat", "fluent-emoji-high-contrast": "fluent high contrast"}
SMILEYS, PEOPLE, COMPONENT, ANIMALS, FOOD, TRAVEL, ACTIVITIES, OBJECTS, SYMBOLS, FLAGS = range(10)
# Signs, letters and clock faces are told apart by small glyphs that 64 tokens cannot draw.
SKIP = re.compile(r"o’clock|thirty|button|keycap|arrow|input|person|people|symbol for|postal|zodiac|dominos?|mahjong")
PARTS = {"brain", "anatomical heart", "lungs", "tooth", "bone", "eye", "eyes", "ear", "nose", "mouth", "tongue",
         "footprints", "waving hand", "thumbs up", "thumbs down", "raised fist", "victory hand", "clapping hands"}
RECOLOURS = 3


def render(svg):
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
        picture = square
    return np.asarray(picture)


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "").replace("'", "")).strip("-")


def held_out(name):
    return name not in CORE and int(hashlib.sha256(name.encode()).hexdigest(), 16) % 1000 < 50


def chosen(entry):
    """Whether an emoji of the CLDR list is drawn at all."""
    label, group = entry["label"], entry.get("group")
    if group in (SMILEYS, ANIMALS, FOOD, TRAVEL, ACTIVITIES, OBJECTS):
        return not SKIP.search(label)
    if group == PEOPLE:
        return label in PARTS
    return group == SYMBOLS and re.search(r"circle|square|diamond|star|heart|check|cross mark|question|exclam|infinity",
                                          label) is not None and not SKIP.search(label)


def split_colour(name):
    """("red apple") -> ("apple", "red"); no colour word -> (name, None)."""
    words = name.split()
    found = [w for w in words if w in COLOURS]
    rest = " ".join(w for w in words if w not in COLOURS)
    return (rest, found[0]) if len(found) == 1 and rest else (name, None)


def hsv(rgba):
    rgb = rgba[..., :3].astype(np.float32) / 255
    top, low = rgb.max(-1), rgb.min(-1)
    span = np.maximum(top - low, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(top == r, (g - b) / span % 6, np.where(top == g, (b - r) / span + 2, (r - g) / span + 4)) * 60
    return hue, (top - low) / np.maximum(top, 1e-6), top


def dominant(rgba):
    """The hue in degrees that most of a picture is painted in, or None where no single hue rules."""
    hue, saturation, value = hsv(rgba)
    solid = rgba[..., 3] > 128
    vivid = solid & (saturation > 0.35) & (value > 0.25)
    if solid.sum() < 400 or vivid.sum() < 0.45 * solid.sum():
        return None
    counts = np.histogram(hue[vivid], 36, (0, 360))[0]
    windows = sum(np.roll(counts, k) for k in (-2, -1, 0, 1, 2))
    centre = int(windows.argmax())
    if windows[centre] < 0.8 * vivid.sum():
        return None
    near = hue[vivid][np.abs((hue[vivid] - centre * 10 - 5 + 180) % 360 - 180) < 25]
    return float(np.median((near - centre * 10 + 180) % 360 - 180 + centre * 10) % 360)


def colour_word(hue):
    word = min(HUES, key=lambda w: abs((hue - HUES[w] + 180) % 360 - 180))
    return word if abs((hue - HUES[word] + 180) % 360 - 180) < 18 else None


def recolour(rgba, start, word):
    """Turn the ruling hue of a picture into that of `word`; the other hues turn with it only if they are near."""
    hue, saturation, value = hsv(rgba)
    distance = np.abs((hue - start + 180) % 360 - 180)
    moved = (distance < 45) & (saturation > 0.12)
    target = np.where(moved, (hue - start) * 0.5 + HUES[word], hue) % 360
    sector = target / 60
    chroma = value * saturation
    second = chroma * (1 - np.abs(sector % 2 - 1))
    zero = np.zeros_like(chroma)
    table = np.stack([np.stack(t, -1) for t in ((chroma, second, zero), (second, chroma, zero), (zero, chroma, second),
                                                (zero, second, chroma), (second, zero, chroma), (chroma, zero, second))])
    index = np.clip(sector.astype(int), 0, 5)
    rgb = np.take_along_axis(table, index[None, ..., None].repeat(3, -1), 0)[0] + (value - chroma)[..., None]
    out = rgba.copy()
    out[..., :3] = np.where(moved[..., None], np.round(rgb * 255), rgba[..., :3]).astype(np.uint8)
    return out


def icons(folder):
    """name -> SVG text of one iconify package, aliases resolved."""
    pack = json.loads((folder / "icons.json").read_text())
    width, height = pack.get("width", 16), pack.get("height", 16)

    def svg(icon):
        box = (icon.get("left", 0), icon.get("top", 0), icon.get("width", width), icon.get("height", height))
        return ('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                'viewBox="%g %g %g %g">%s</svg>' % (*box, icon["body"].replace("currentColor", "#000")))

    drawn = {name: svg(icon) for name, icon in pack["icons"].items()}
    for name, alias in pack.get("aliases", {}).items():
        if alias["parent"] in drawn and set(alias) == {"parent"}:
            drawn[name] = drawn[alias["parent"]]
    return drawn


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--raw", type=Path, default=Path("raw"))
    arguments.add_argument("--out", type=Path, default=Path("data"))
    a = arguments.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    table = [e for e in json.loads((a.raw / "emojibase-data/en/data.json").read_text()) if chosen(e)]
    codes = json.loads((a.raw / "emojibase-data/en/shortcodes/emojibase.json").read_text())
    rng = np.random.default_rng(0)
    pictures, meta = [], []
    for folder, style in STYLES.items():
        drawn = icons(a.raw / f"iconify-json-{folder}")
        compact = {k.replace("-", ""): v for k, v in drawn.items()}
        count = 0
        for entry in table:
            name = entry["label"].lower().replace("’", "'")
            source = drawn.get(slug(name)) or compact.get(slug(name).replace("-", ""))
            if source is None:
                continue
            try:
                picture = render(source)
            except Exception:  # resvg refuses a few files; there are enough others
                continue
            if (picture[..., 3] > 128).mean() < 0.02:
                continue
            subject, colour = split_colour(name)
            short = codes.get(entry["hexcode"], [])
            aliases = [c.replace("_", " ") for c in ([short] if isinstance(short, str) else short)]
            row = {"name": name, "style": style, "subject": subject, "colour": colour, "recoloured": False,
                   "aliases": [w for w in dict.fromkeys(aliases) if w != name and not re.search(r"[0-9]", w)],
                   "split": "val" if held_out(name) else "train", "group": entry["group"]}
            count += 1
            hue = dominant(picture) if entry["group"] != SMILEYS or "heart" in name else None
            if hue is not None and row["colour"] is None:
                row["colour"] = colour_word(hue)
            pictures.append(picture)
            meta.append(row)
            if hue is None or row["split"] == "val":
                continue
            others = [w for w in HUES if w != row["colour"] and abs((hue - HUES[w] + 180) % 360 - 180) > 20]
            for word in rng.choice(others, RECOLOURS, replace=False):
                pictures.append(recolour(picture, hue, word))
                meta.append({**row, "colour": str(word), "recoloured": True})
        print(f"{folder}: {count} pictures", flush=True)
    np.save(a.out / "pictures.npy", np.stack(pictures))
    (a.out / "pictures.json").write_text(json.dumps(meta))
    plain = [m for m in meta if not m["recoloured"]]
    print(len(plain), "pictures,", len(meta) - len(plain), "recoloured,", len({m["name"] for m in meta}), "names,",
          sum(m["split"] == "val" for m in meta), "held out")


if __name__ == "__main__":
    main()
