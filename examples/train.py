"""Train on files of any format and any place, here or on a cluster, and print what came of it.

    python examples/train.py TRAIN... --predictor-type binary_classifier [--workers N] [--set epochs=5 ...]
    ray submit cluster/aws.yaml examples/train.py -- s3://bucket/clicks/ --predictor-type binary_classifier --workers 4
    ray job submit --submission-id clicks --working-dir examples -- python train.py s3://bucket/clicks/ ...

In the latter two it trains on that cluster or says why it cannot; in the last the training job is called clicks too.
"""

from __future__ import annotations

import argparse

import rayfm
from rayfm.progress import watching


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="+", help="files, folders or prefixes that every machine can read")
    parser.add_argument("--validation", help="data that decide which epoch is best")
    parser.add_argument("--predictor-type", required=True, choices=["regressor", "binary_classifier"])
    parser.add_argument("--num-factors", type=int, default=16)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter: `rayfm train --help`"
    )
    parser.add_argument("--workers", type=int, default=1, help="train_instance_count (default 1)")
    parser.add_argument("--instance-type", help="CPUs and memory of a worker, such as ml.m5.2xlarge")
    parser.add_argument("--output-path", help="where the job's directory is made; RAYFM_OUTPUT_PATH when left out")
    parser.add_argument("--job-name", help="its name; the submission id, or made from the time, when left out")
    parser.add_argument("--address", help="the cluster; RAY_ADDRESS, or the one this runs on, when left out")
    return parser.parse_args()


def main() -> None:
    """Train, and print where the model is and how good."""
    given = arguments()
    hyperparameters = dict(pair.split("=", 1) for pair in given.set)
    with watching() as watcher:
        result = rayfm.train(
            given.train,
            validation=given.validation,
            hyperparameters={
                "predictor_type": given.predictor_type,
                "num_factors": given.num_factors,
                **hyperparameters,
            },
            train_instance_count=given.workers,
            train_instance_type=given.instance_type,
            output_path=given.output_path,
            job_name=given.job_name,
            address=given.address,
            watcher=watcher,
        )
    print(f"model: {result.model_uri}")
    for name, value in result.metrics.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
