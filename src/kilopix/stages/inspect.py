"""Shards to a page: pictures decoded from their latents, beside the captions that they are trained with.

In: a folder of shards. Out: one HTML file that holds everything, for a look at what a network will see.
"""

import base64
import io
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from kilopix.config import Config, parse
from kilopix.data.checked_batches import check_hashes
from kilopix.data.shards import Sample, Shards
from kilopix.jobs import check_report, write_report
from kilopix.plain_text import in_html
from kilopix.pretrained.autoencoder import Autoencoder, AutoencoderConfig, load_autoencoder
from kilopix.progress import track
from kilopix.runtime import pick_device, say, seed_from
from kilopix.types import UserError

_STYLE = """body{font:15px/1.45 sans-serif;color:#222;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td{vertical-align:top;padding:.6rem;border-top:1px solid #ddd}
img{width:192px;height:192px;border-radius:4px}img.px{image-rendering:pixelated}small{color:#666}
td{overflow-wrap:anywhere}td:first-child,td:nth-child(2){width:200px}
@media (max-width:640px){body{margin:1rem auto}tr{display:grid;grid-template-columns:1fr 1fr}
td:first-child,td:nth-child(2){width:auto}td:last-child{grid-column:1/-1;border:0}img{width:100%;height:auto}}"""


class _Owner(Config):
    """So that the settings in an index are read as a recipe's are."""

    autoencoder: AutoencoderConfig


@dataclass(frozen=True)
class Shown:
    """One sample on the page."""

    image: Image.Image
    sample: Sample
    caption: str
    kind: str


def run(shards_folder: Path, out: Path, count: int = 24, seed: int = 0, device: str = "auto") -> Path:
    """Write a page of `count` plain pictures drawn at random, each beside its augmented version, if any."""
    if count < 1:
        raise UserError(f"count: must be at least 1 (got {count}).")
    check_report(out, "inspect")
    shards = Shards(shards_folder)
    index = shards.index
    config = parse(_Owner, {"autoencoder": index.autoencoder}, f"{shards_folder}: index.json").autoencoder
    autoencoder = load_autoencoder(config, shards_folder, pick_device(device))
    if autoencoder.fingerprint != index.autoencoder_fingerprint:
        raise UserError(
            f"{shards_folder}: was encoded with autoencoder {index.autoencoder_fingerprint}, but "
            f"{autoencoder.fingerprint} is here."
        )
    rng = random.Random(seed_from("inspect", seed))
    chosen = sorted(rng.sample(range(len(shards)), min(count, len(shards))))
    versions = [j for i in chosen for j in shards.versions(i)[:1]]
    check_hashes(shards_folder, shards.files_of(chosen) | shards.files_of(versions, "augmented"))
    write_report(out, _page(shards, autoencoder, chosen), "inspect")
    say(f"{out}: {len(chosen)} of {len(shards)} pictures.")
    return out


def _page(shards: Shards, autoencoder: Autoencoder, chosen: list[int]) -> str:
    index = shards.index
    captions = shards.column("augmented", "caption")
    kinds = shards.column("augmented", "kind")
    rows = []
    for i in track(chosen, "decode"):
        plain = _show(autoencoder, shards.plain(i), " / ".join(shards.captions(i)), "plain")
        versions = shards.versions(i)
        other = shards.augmented(i)
        cells = [_picture(plain)]
        texts = [_text(plain)]
        if other is not None:
            j = versions[0]
            made = _show(autoencoder, other, captions[j].as_py(), kinds[j].as_py())
            cells.append(_picture(made))
            texts.append(_text(made))
        else:
            cells.append("")
        rows.append(f"<tr><td>{cells[0]}</td><td>{cells[1]}</td><td>{''.join(texts)}</td></tr>")
    about = (
        f"{index.plain} plain and {index.augmented} augmented pictures at {index.image_size} pixels; latents "
        f"{' x '.join(map(str, index.latent_shape))} by {index.autoencoder_name}; text by "
        f"{index.text_encoder_name}, {index.text_width} wide, in {index.text_storage}, at most "
        f"{index.text_encoder.get('max_tokens')} tokens."
    )
    return (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{in_html(str(shards.folder.name))}</title>"
        f"<style>{_STYLE}</style><h1>Shards</h1><p>{in_html(about)} The pictures are decoded from the stored "
        f"latents.</p><table>{''.join(rows)}</table>\n"
    )


def _show(autoencoder: Autoencoder, sample: Sample, caption: str, kind: str) -> Shown:
    pixels = autoencoder.decode(torch.from_numpy(sample.mean.astype("float32"))[None])[0]
    array = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return Shown(Image.fromarray(array), sample, caption, kind)


def _picture(shown: Shown) -> str:
    buffer = io.BytesIO()
    shown.image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    small = ' class="px"' * (max(shown.image.size) < 192)
    return f'<img{small} alt="{in_html(shown.caption)}" src="data:image/png;base64,{data}">'


def _text(shown: Shown) -> str:
    tokens = len(shown.sample.text)
    return (
        f"<p><b>{in_html(shown.kind)}</b> {in_html(shown.caption)}<br>"
        f"<small>{in_html(shown.sample.path)}, {tokens} tokens</small></p>"
    )
