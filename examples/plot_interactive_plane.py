"""
An interactive map of the digits
================================

A scatter plot shows where the rows are, but not what they are. Here each point shows
its image when it is pointed at, beside its reconstructions from two components, by PCA
and by an autoencoder. The map is a piece of HTML without any library, which any page
can contain.
"""

# sphinx_gallery_thumbnail_path = "_static/digits_plane.png"

# sphinx_gallery_start_ignore
# Run as a script, this file saves the map in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Interactive map", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import json
from string import Template

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

from skae import AutoencoderTransformer

# %%
# Both methods are fitted to the same digits. The map shows 400 others.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=400, stratify=y, random_state=0
)
models = {
    "PCA": PCA(2, random_state=0).fit(X_train),
    "autoencoder": AutoencoderTransformer(2, random_state=0).fit(X_train),
}

# %%
# Images are written as strings with one hexadecimal digit for each of 64 pixels, codes
# as positions in percent of the map.


def as_strings(images):
    """Return each image as a string of hexadecimal digits."""
    pixels = np.clip(np.rint(images * 15 / 16), 0, 15).astype(int)
    return ["".join(f"{pixel:x}" for pixel in row) for row in pixels]


images = {"image": as_strings(X_test)}
positions, titles = {}, {}
for name, model in models.items():
    Z = model.transform(X_test)
    X_hat = model.inverse_transform(Z)
    low, high = Z.min(axis=0), Z.max(axis=0)
    positions[name] = np.round(3 + 94 * (Z - low) / (high - low), 1).tolist()
    images[name] = as_strings(X_hat)
    lost = np.sum((X_test - X_hat) ** 2) / np.sum((X_test - model.mean_) ** 2)
    titles[name] = f"{name}: {1 - lost:.0%} of the variance"
    print(titles[name])

# %%
# The page is a template, into which the data are written as JSON. Its text has the
# colour of the page around it.

colors = [plt.matplotlib.colors.to_hex(f"C{digit}") for digit in range(10)]
template = Template("""
<div class="digits-map">
<style>
.digits-map { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.digits-map figure { flex: 1 1 9rem; margin: 0; max-width: 28rem; }
.digits-map svg { width: 100%; border: 1px solid #8888; border-radius: 4px; }
.digits-map .title { margin: 0 0 .3rem; text-align: center; }
.digits-map text { font: bold 3.4px sans-serif; text-anchor: middle; cursor: pointer; }
@media (max-width: 35rem) { .digits-map text { font-size: 5px; } }
.digits-map .chosen { font-size: 8px; stroke: currentColor; stroke-width: .3px; }
.digits-map .shown { display: flex; flex: 1 1 100%; gap: 1rem; flex-wrap: wrap; }
.digits-map .shown div { text-align: center; font-size: .85rem; }
.digits-map canvas { display: block; margin: auto; width: 96px; height: 96px;
  image-rendering: pixelated; border: 1px solid #8888; background: #fff; }
</style>
<script>
(() => {
  const data = $data;
  const root = document.currentScript.parentElement;
  const svgName = "http://www.w3.org/2000/svg";
  const glyphs = [];  // of each map, one for each row
  const canvases = {};

  function draw(canvas, pixels) {
    const context = canvas.getContext("2d");
    for (let i = 0; i < 64; i++) {
      const grey = 255 - 17 * parseInt(pixels[i], 16);
      context.fillStyle = `rgb($${grey}, $${grey}, $${grey})`;
      context.fillRect(i % 8, Math.floor(i / 8), 1, 1);
    }
  }

  function choose(row) {
    root.querySelectorAll(".chosen").forEach(glyph => glyph.classList.remove("chosen"));
    for (const map of glyphs) {
      map[row].classList.add("chosen");
      map[row].parentElement.append(map[row]);  // above the others
    }
    for (const [name, canvas] of Object.entries(canvases))
      draw(canvas, data.images[name][row]);
  }

  // The glyph that is nearest to the pointer.
  function nearest(event, svg, positions) {
    const box = svg.getBoundingClientRect();
    const x = 100 * (event.clientX - box.left) / box.width;
    const y = 100 - 100 * (event.clientY - box.top) / box.height;
    const distances = positions.map(([a, b]) => Math.hypot(a - x, b - y));
    return distances.indexOf(Math.min(...distances));
  }

  for (const [name, positions] of Object.entries(data.positions)) {
    const figure = document.createElement("figure");
    figure.innerHTML = `<p class="title">$${data.titles[name]}</p>`;
    const svg = document.createElementNS(svgName, "svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Digits in two components, $${data.titles[name]}`);
    glyphs.push(positions.map(([x, y], row) => {
      const glyph = document.createElementNS(svgName, "text");
      glyph.textContent = data.labels[row];
      glyph.setAttribute("fill", data.colors[data.labels[row]]);
      glyph.setAttribute("x", x);
      glyph.setAttribute("y", 101 - y);
      svg.append(glyph);
      return glyph;
    }));
    const follow = event => choose(nearest(event, svg, positions));
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    figure.append(svg);
    root.append(figure);
  }

  const shown = document.createElement("div");
  shown.className = "shown";
  for (const name of Object.keys(data.images)) {
    const canvas = canvases[name] = document.createElement("canvas");
    canvas.width = canvas.height = 8;
    const part = document.createElement("div");
    part.append(canvas, name);
    shown.append(part);
  }
  root.append(shown);
  choose(0);
})();
</script>
</div>
""")
data = {
    "positions": positions,
    "images": images,
    "labels": y_test.tolist(),
    "titles": titles,
    "colors": colors,
}
page = template.substitute(data=json.dumps(data, separators=(",", ":")))


class Map:
    """A piece of HTML, which a notebook and a gallery show."""

    def _repr_html_(self):
        return page


# sphinx_gallery_start_ignore
(out / "digits_plane.html").write_text(page)
# sphinx_gallery_end_ignore
Map()

# %%
# In the plane of PCA most digits overlap, and the reconstructions look alike. In the
# plane of the autoencoder most classes are rays of their own, and many digits can be
# read from the reconstruction.
