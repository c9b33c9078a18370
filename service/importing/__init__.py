"""An ONNX file from anywhere becomes a model folder: what the file says is read, the rest is guessed and said.

`source.read` opens the file. `propose.propose` makes a `Proposal` of it, from modules that read one thing each: the
picture that goes in (`picture`), what comes out (`answers`) of a `trial`, labels (`labels`), state (`states`).
`folder.write` makes the folder, and `outputs` adds what a graph computes and does not give, such as its activation map.
"""
