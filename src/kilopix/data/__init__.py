"""Data: image sources, captions, CutMix and Crop, manifests, shards, the loader."""
