"""The data flow, one file an arrow: each reads files, wires libraries and writes files.

mini       draws the embedded world            (object pack -> class folders)
caption    images -> captions                  (manifest)
augment    captions -> CutMix or Crop images   (images, manifest)
encode     images, captions -> shards          (latents, text states)
train      shards -> run                       (checkpoints, weights)
sample     weights, prompts -> images
serve      weights -> web page, REST endpoint
evaluate   weights -> scores with protocol
report     all of it -> one page
"""
