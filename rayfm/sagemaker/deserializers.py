"""What reads the answers of endpoints, in a module named as SageMaker's SDK names it."""

from rayfm.sagemaker.serializers import (
    BytesDeserializer,
    JSONDeserializer,
    JSONLinesDeserializer,
    RecordDeserializer,
    SimpleBaseDeserializer,
)

__all__ = [
    "BytesDeserializer",
    "JSONDeserializer",
    "JSONLinesDeserializer",
    "RecordDeserializer",
    "SimpleBaseDeserializer",
]
