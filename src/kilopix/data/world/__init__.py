"""A small world of pictures that ships with kilopix: 64 objects on simple backgrounds.

In: seeds. Out: scenes, their pictures and their captions; needs no download.
"""
