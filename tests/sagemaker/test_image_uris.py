"""Names of SageMaker's images."""

import pytest

from rayfm.sagemaker.image_uris import ACCOUNTS, image_uri


def test_image_uri__is_that_of_the_sdk_without_a_region(monkeypatch):
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert image_uri() == "382416733822.dkr.ecr.us-east-1.amazonaws.com/factorization-machines:1"


def test_image_uri__is_that_of_the_environments_region(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    assert image_uri().startswith("669576153137.dkr.ecr.eu-north-1.")
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    assert image_uri() == "390948362332.dkr.ecr.cn-north-1.amazonaws.com.cn/factorization-machines:1"


def test_image_uri__of_an_unknown_region_names_the_known_ones():
    with pytest.raises(ValueError, match=r"must be one of af-south-1, .*, us-west-2, got atlantis-1\."):
        image_uri("atlantis-1")


def test_accounts__are_all_different_and_of_twelve_digits():
    assert len(set(ACCOUNTS.values())) == len(ACCOUNTS) == 33
    assert all(account.isdigit() and len(account) == 12 for account in ACCOUNTS.values())
