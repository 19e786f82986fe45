"""Names of SageMaker's container images, for scripts that ask for them; rayfm pulls none."""

from __future__ import annotations

import os

REPOSITORY, TAG = "factorization-machines", "1"
DEFAULT_REGION = "us-east-1"

ACCOUNTS = {
    "af-south-1": "455444449433",
    "ap-east-1": "286214385809",
    "ap-northeast-1": "351501993468",
    "ap-northeast-2": "835164637446",
    "ap-northeast-3": "867004704886",
    "ap-south-1": "991648021394",
    "ap-south-2": "628508329040",
    "ap-southeast-1": "475088953585",
    "ap-southeast-2": "712309505854",
    "ap-southeast-3": "951798379941",
    "ap-southeast-4": "106583098589",
    "ca-central-1": "469771592824",
    "ca-west-1": "190319476487",
    "cn-north-1": "390948362332",
    "cn-northwest-1": "387376663083",
    "eu-central-1": "664544806723",
    "eu-central-2": "680994064768",
    "eu-north-1": "669576153137",
    "eu-south-1": "257386234256",
    "eu-south-2": "104374241257",
    "eu-west-1": "438346466558",
    "eu-west-2": "644912444149",
    "eu-west-3": "749696950732",
    "il-central-1": "898809789911",
    "me-central-1": "272398656194",
    "me-south-1": "249704162688",
    "sa-east-1": "855470959533",
    "us-east-1": "382416733822",
    "us-east-2": "404615174143",
    "us-gov-east-1": "237065988967",
    "us-gov-west-1": "226302683700",
    "us-west-1": "632365934929",
    "us-west-2": "174872318107",
}
"""AWS account that keeps the images of a region."""


def image_uri(region: str | None = None) -> str:
    """Return the name of SageMaker's image for factorization machines.

    Parameters
    ----------
    region
        AWS_REGION, AWS_DEFAULT_REGION or us-east-1 when left out.

    Raises
    ------
    ValueError
        If the region has no such image.

    Examples
    --------
    >>> image_uri("eu-west-1")
    '438346466558.dkr.ecr.eu-west-1.amazonaws.com/factorization-machines:1'
    """
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    if region not in ACCOUNTS:
        raise ValueError(f"the AWS region must be one of {', '.join(ACCOUNTS)}, got {region}.")
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/{REPOSITORY}:{TAG}"
