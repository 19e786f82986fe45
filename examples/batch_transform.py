"""Batch transform: score files of new rows, each into a file of its own, the rows' uids beside the scores.

    python examples/batch_transform.py [FOLDER]

Makes up clicks in FOLDER (./clicks when left out), trains on them and scores new/monday.parquet and
new/tuesday.parquet into scores/monday.parquet.out and scores/tuesday.parquet.out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import made_up

import rayfm


def main(folder: Path) -> None:
    """Train, score, and print the likeliest click of each file."""
    made_up.write("clicks", folder)
    result = rayfm.train(
        str(folder / "train"),
        hyperparameters={"num_factors": 8, "predictor_type": "binary_classifier", "optimizer": "adagrad", "epochs": 3},
    )
    summary = rayfm.transform(
        result.model_uri, folder / "new", output_path=str(folder / "scores"), keep_columns=["advertisement"]
    )
    print(f"{summary.num_rows} rows of {summary.num_files} files scored")
    for output in summary.outputs:
        rows = [json.loads(line) for line in Path(output).read_text().splitlines()]
        best = max(rows, key=lambda row: row["score"])
        print(f"{output}: row {best['uid']}, advertisement {best['advertisement']}: {best['score']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("clicks"))
    main(parser.parse_args().folder)
