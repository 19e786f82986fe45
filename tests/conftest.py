import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "rayfm-test"


@pytest.fixture(scope="session")
def s3_endpoint():
    """A real S3 API over HTTP on the loopback interface, with an empty bucket; the environment points at it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield environment["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def bucket(s3_endpoint):
    """The bucket of `s3_endpoint` as a boto3 resource, emptied after the test."""
    bucket = boto3.resource("s3").Bucket(BUCKET)
    yield bucket
    bucket.objects.all().delete()
