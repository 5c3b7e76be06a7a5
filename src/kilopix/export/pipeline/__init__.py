"""The code of an exported diffusers pipeline: `kilopix export --format diffusers` copies these files.

They stand alone, on torch, diffusers and transformers, so that a pipeline runs where kilopix is not
installed. kilopix itself never imports them; tests hold their pictures against its own.
"""
