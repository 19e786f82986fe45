"""Clusters that grow: what they do not have yet is waited for."""

import time

import pytest

from rayfm.errors import ResourceError, StoppedError
from rayfm.training import cluster, growth


def test_patience__is_longer_where_the_cluster_grows(monkeypatch):
    assert (growth.growth_s(), growth.patience_s()) == (0, 120)
    monkeypatch.setenv("RAYFM_CLUSTER_GROWS_S", "900")
    assert (growth.growth_s(), growth.patience_s()) == (900, 900)
    monkeypatch.setenv("RAYFM_CLUSTER_GROWS_S", "30")
    assert growth.patience_s() == 120


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_patience__what_is_no_time_is_refused(monkeypatch, text):
    monkeypatch.setenv("RAYFM_CLUSTER_GROWS_S", text)
    with pytest.raises(ResourceError, match=f"must be a number of seconds >= 0, got '{text}'"):
        growth.growth_s()


def test_reserved_workers__more_than_a_growing_cluster_has_are_waited_for(ray_cluster, monkeypatch):
    request = cluster.WorkerRequest(9)
    monkeypatch.setenv("RAYFM_CLUSTER_GROWS_S", "900")
    monkeypatch.setattr(growth, "RESERVATION_TIMEOUT_S", 0.0)
    asked = []

    def check():
        asked.append(time.monotonic())
        if len(asked) == 2:
            raise StoppedError("stopped while waiting")

    with pytest.raises(StoppedError, match="while waiting"), cluster.reserved_workers(request, check):
        pytest.fail("9 CPUs of 8")
    monkeypatch.setenv("RAYFM_CLUSTER_GROWS_S", "0.1")
    with pytest.raises(ResourceError, match=r"9 workers need 1 CPUs each; .* were free for 0\.1 s"):
        with cluster.reserved_workers(request):
            pytest.fail("9 CPUs of 8")
