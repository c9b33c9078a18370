'''What the scripts `models/<name>/train.py` share: data → model → loop → evaluate → export reads the same in each.

The service never imports this package and its wheel does not contain it. From the checkout's folder:
`PYTHONPATH=. python models/<name>/train.py --data DIR` (or once `pip install -e .`); the group `train` of pyproject
lists what it needs. Only `export` and `loop` import torch.

    """Train NAME, which does THIS.

        python models/NAME/train.py --data DIR
    """
    @dataclass(frozen=True, kw_only=True)
    class Config(Flags):                                   # --data --out --work --seed --threads --resume, and:
        """Hyper-parameters."""
        out: Path = Path(__file__).resolve().parent
        work: Path = Path("runs/NAME")
        epochs: int = 30
        """Passes over the training pictures."""           # the flag's help

    CELLS = DataSet("cells", "https://…", "MIT", ("cells/pictures.zip", "cells/labels.csv"))

    def main(config: Config) -> None:
        start(config)                                      # loop: seeds, threads
        pictures = read(CELLS.folder(config.data))         # data: a sentence with the origin where a file is missing
        network = Network()
        average = Average(network, 0.998)                  # loop: moving average of the weights
        for epoch in epochs(config.epochs, Checkpoint(config, network=network, optimiser=adam, average=average)):
            epoch.log(loss=…, held_out=…)                  # a line and a checkpoint at the end of each
        model = torch_to_onnx(…)  or  GraphBuilder().…     # export / graph
        check_equal(model, feeds, expected, tolerance=1e-4)
        model = to_int8(model, feeds)                      # quantise: to_int8, to_dynamic_int8, to_float16_storage
        save(model, config.out / "1" / "model.onnx")
        write_golden(config.out / "1", inputs, tolerance=0.01)
        write_block(config.out / "card.md", "metrics", [*table(…), *data_table(config.data, CELLS)])
        write_metrics(config.out / "manifest.toml", {"mAP@0.5": 0.91})

    if __name__ == "__main__":
        main(read_flags(Config, __doc__))

| module | holds |
|---|---|
| `flags` | `Flags`, `read_flags`: a frozen dataclass as command-line flags |
| `data` | `DataSet`, `DataMissing`, `sha256`, `part_of`, `split`: checksums, and parts that never change |
| `graph` | `GraphBuilder`: operators as functions; uint8 pictures normalised in the graph; OPSET, IR_VERSION |
| `export` | `torch_to_onnx`, `Picture` (that normalisation, in torch), `open_session`, `answers`, `check_equal` … |
| `quantise` | `to_int8` (QDQ, static), `to_dynamic_int8`, `to_float16_storage` |
| `golden` | `write_golden`: real inputs answered by the service's own path |
| `card` | `write_block`, `table`, `data_table`, `write_metrics`, `write_tables` |
| `loop` | `start`, `epochs`, `Checkpoint`, `Average` |
'''
