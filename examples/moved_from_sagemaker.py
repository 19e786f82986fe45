"""A script for SageMaker's FactorizationMachines, which one changed line moved to Ray.

    python examples/moved_from_sagemaker.py

The line is the import:

    -import sagemaker
    +from rayfm import sagemaker
"""

import json

import numpy as np

from rayfm import sagemaker

role = "arn:aws:iam::111122223333:role/service-role/AmazonSageMaker-ExecutionRole"
instance_type = "ml.m5.large"

# Film ratings: one-hot users and films. These are made up; a notebook would load MovieLens here.
users, films, rows = 50, 80, 4000
rng = np.random.default_rng(0)
user, film = rng.integers(0, users, rows), rng.integers(0, films, rows)
taste = rng.normal(size=(users + films, 2))
ratings = np.clip(3 + (taste[user] * taste[users + film]).sum(axis=1), 1, 5).astype("float32")
features = np.zeros((rows, users + films), dtype="float32")
features[np.arange(rows), user] = features[np.arange(rows), users + film] = 1
train_features, test_features = features[:3600], features[3600:]
train_ratings, test_ratings = ratings[:3600], ratings[3600:]

fm = sagemaker.FactorizationMachines(
    role=role,
    instance_count=1,
    instance_type=instance_type,
    num_factors=8,
    predictor_type="regressor",
    epochs=20,
    bias_lr=0.01,
    factors_lr=0.01,
)
train_records = fm.record_set(train_features, train_ratings)
test_records = fm.record_set(test_features, test_ratings, channel="test")
fm.fit([train_records, test_records], mini_batch_size=100)


class FMSerializer(sagemaker.serializers.JSONSerializer):
    def serialize(self, data):
        return json.dumps({"instances": [{"features": row.tolist()} for row in data]})


predictor = fm.deploy(
    initial_instance_count=1,
    instance_type=instance_type,
    serializer=FMSerializer(),
    deserializer=sagemaker.deserializers.JSONDeserializer(),
)
answer = predictor.predict(test_features[:5])
for row, prediction in enumerate(answer["predictions"]):
    print(f"rated {test_ratings[row]:.1f}, predicted {prediction['score']:.1f}")

transformer = fm.transformer(
    instance_count=1, instance_type=instance_type, accept="application/jsonlines", assemble_with="Line"
)
transformer.transform(
    test_records.s3_data,
    data_type="ManifestFile",
    content_type="application/x-recordio-protobuf",
    split_type="RecordIO",
)
print("scores of all test rows:", transformer.output_path)

predictor.delete_endpoint()
