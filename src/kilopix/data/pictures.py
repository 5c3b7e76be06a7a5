"""Pictures for people: PNG files and contact sheets.

In: PIL images and their texts. Out: files, and one image with a caption under every picture.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kilopix.runtime import atomic_path

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG")


def _columns(count: int) -> int:
    """Of four to eight columns, those that leave the fewest empty places."""
    return count if count < 4 else min((6, 5, 4, 7, 8), key=lambda columns: -count % columns)


def grid(images: list[Image.Image], prompts: Sequence[str], per_prompt: int) -> Image.Image:
    """A contact sheet: the pictures of each prompt side by side, the prompt beneath them."""
    cell = max(128, images[0].width)
    columns = per_prompt if per_prompt > 1 else _columns(len(images))
    rows = -(-len(images) // columns)
    text_height, gap = 34, 8
    row_height = cell + text_height + gap
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * row_height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = gap + column * (cell + gap), gap + row * row_height
        scaled = image.resize(
            (cell, cell), Image.Resampling.NEAREST if cell > image.width else Image.Resampling.LANCZOS
        )
        sheet.paste(scaled, (x, y))
        if per_prompt == 1 or column == 0:
            room = cell if per_prompt == 1 else columns * (cell + gap)
            text = _wrap(prompts[i // per_prompt], pen, font, room, lines=2)
            pen.multiline_text((x, y + cell + 3), text, fill="#333333", font=font, spacing=2)
    return sheet


def sheet(images: Sequence[Image.Image], columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """A labelled contact sheet: row by row, with a label over every column and left of every row."""
    cell, gap, margin, head = max(128, *(image.width for image in images)), 8, 150, 24
    width = margin + gap + len(columns) * (cell + gap)
    out = Image.new("RGB", (width, head + len(rows) * (cell + gap) + gap), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for column, label in enumerate(columns):
        pen.text((margin + gap + column * (cell + gap), 6), label, fill="#333333", font=font)
    for row, label in enumerate(rows):
        y = head + row * (cell + gap)
        text = "\n".join(_wrap(line, pen, font, margin - gap, lines=6) for line in label.splitlines())
        pen.multiline_text((gap, y), text, fill="#333333", font=font, spacing=2)
        for column in range(len(columns)):
            image = images[row * len(columns) + column]
            kind = Image.Resampling.NEAREST if cell > image.width else Image.Resampling.LANCZOS
            out.paste(image.resize((cell, cell), kind), (margin + gap + column * (cell + gap), y))
    return out


def _wrap(text: str, pen: ImageDraw.ImageDraw, font: Font, room: int, lines: int) -> str:
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if pen.textlength(longer, font) <= room or not wrapped[-1]:
            wrapped[-1] = longer
        elif len(wrapped) < lines:
            wrapped.append(word)
        else:
            wrapped[-1] += " ..."
            break
    return "\n".join(wrapped)
