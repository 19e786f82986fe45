"""Mutated requests to a replica: all answers are documented ones, a score for each row or an error of the client."""

import asyncio

import pytest

from rayfm.formats.instances import MEDIA_TYPES
from tests.mutations import MODEL, InProcess, documented, fault, mutated_request

REQUESTS = 2_000
SEED = 8


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_replica__answers_what_is_mutated_as_documented(media_type, tmp_path):
    MODEL.save(tmp_path / "model.safetensors")

    async def faults():
        send, statuses = await InProcess.serving(str(tmp_path / "model.safetensors")), documented()
        for number in range(REQUESTS):
            request = mutated_request(media_type, SEED, number)
            wrong = fault(request, *await send(request), statuses)
            if wrong:
                yield f"{wrong}: request {number}, {request.headers} {request.body.hex()}"

    async def first_fault():
        return await anext(faults(), None)

    assert asyncio.run(first_fault()) is None
