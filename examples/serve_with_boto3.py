"""Train, serve the model, and ask the endpoint with boto3, as one asks SageMaker's.

    pip install boto3 && python examples/serve_with_boto3.py

The only thing that boto3 is told is where the endpoints are. It signs its requests, so it wants a key, whatever it is;
where an endpoint has API keys (`api_keys` of `deploy`), one of them must be the `aws_access_key_id`.
"""

from __future__ import annotations

import json

import boto3
import made_up

import rayfm
from rayfm.serving import endpoint

NAME = "boto3-example"


def instance(row) -> dict:
    """Return a row of a CSR matrix in the layout of SageMaker's JSON."""
    keys, values = row.indices.tolist(), row.data.tolist()
    return {"data": {"features": {"keys": keys, "shape": [row.shape[1]], "values": values}}}


def main() -> None:
    """Train, deploy, ask, clean up."""
    rows = made_up.draw("clicks", 20_000)
    result = rayfm.train(
        rows.features,
        labels=rows.labels,
        hyperparameters={"num_factors": 8, "predictor_type": "binary_classifier", "optimizer": "adagrad", "epochs": 3},
    )
    endpoint.deploy(result.model_uri, NAME)
    try:
        runtime = boto3.client(
            "sagemaker-runtime",
            endpoint_url=endpoint.default_url(),
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        asked = {"instances": [instance(rows.features[row]) for row in range(3)]}
        answer = runtime.invoke_endpoint(EndpointName=NAME, ContentType="application/json", Body=json.dumps(asked))
        for prediction in json.loads(answer["Body"].read())["predictions"]:
            print(f"score {prediction['score']:.3f}, label {prediction['predicted_label']:.0f}")
        runtime.close()
    finally:
        endpoint.delete(NAME)


if __name__ == "__main__":
    main()
