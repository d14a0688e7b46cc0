"""What clusters say of a process, read from faked environments, up to where JAX would connect."""

import argparse
import http.server
import os
import re
import socket
import sys
import threading
import types

import jax
import pytest
from jax._src import cloud_tpu_init, clusters
from jax._src import distributed as jax_distributed
from jax._src.clusters import cloud_tpu_cluster, k8s_cluster

from ktn_jax import commands
from ktn_jax.runtime.processes import Processes
from ktn_jax.training import distributed

_CLUSTER_VARIABLES = re.compile(r"SLURM_|OMPI_|TPU_|MEGASCALE_|KUBERNETES_|JOB_|JAX_(COORD|LOCAL)")


@pytest.fixture
def joined(monkeypatch):
    """What JAX is told: filled in when it would connect; no cluster's variable is set."""
    for name in [name for name in os.environ if _CLUSTER_VARIABLES.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(jax_distributed, "global_state", jax_distributed.State())
    monkeypatch.setattr(jax_distributed.xla_bridge, "backends_are_initialized", lambda: False)
    told = {}

    def client(coordinator, process_id, **options):
        told.update(coordinator=coordinator, process=process_id, options=options)
        return types.SimpleNamespace(connect=lambda: None, shutdown=lambda: None)

    def service(address, count, **options):
        told["count_at_coordinator"] = count

    library = types.SimpleNamespace(
        get_distributed_runtime_client=client,
        get_distributed_runtime_service=service,
        create_preemption_sync_manager=lambda: types.SimpleNamespace(initialize=lambda c: None),
    )
    monkeypatch.setattr(jax_distributed, "_jax", library)
    monkeypatch.setattr(distributed, "this_process", Processes)  # it would start the devices
    # The settings of this process stay as they are.
    monkeypatch.setattr(jax_distributed, "config", types.SimpleNamespace(update=told.__setitem__))
    before = jax.config.jax_enable_preemption_service
    yield told
    jax.config.update("jax_enable_preemption_service", before)


def join(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_process_arguments(parser)
    commands.join_processes(parser.parse_args(arguments))


SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_NODELIST": "gpu[017,020-023],login1",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.mark.parametrize("arguments", [["--cluster"], ["--cluster", "slurm"]])
def test_slurm(joined, monkeypatch, arguments):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    join(*arguments)
    # The port follows from the job, so that two jobs of a node do not meet: 61440 + 12345 % 4096.
    assert (joined["coordinator"], joined["process"]) == ("gpu017:61497", 9)
    assert jax_distributed.global_state.num_processes == 16
    assert joined["jax_cuda_visible_devices"] == "1"  # one GPU a process
    assert joined["options"]["heartbeat_timeout"] == distributed.HEARTBEAT_SECONDS < 60


def test_open_mpi(joined, monkeypatch):
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    join("--cluster")
    assert (joined["coordinator"], joined["process"]) == ("10.96.0.1:62624", 0)
    assert joined["count_at_coordinator"] == 4


@pytest.fixture
def tpu_vm(monkeypatch):
    """A machine with TPUs, and the server that tells it what it is part of."""
    attributes = {"tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write((content or "").encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for module in (cloud_tpu_init, cloud_tpu_cluster, clusters.cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    yield attributes
    server.shutdown()
    server.server_close()


def test_tpu_vms(joined, tpu_vm):
    tpu_vm["agent-worker-number"] = "3"
    tpu_vm["worker-network-endpoints"] = ",".join(f"x:{i}:127.0.0.{1 + i}" for i in range(4))
    join("--cluster")
    assert (joined["coordinator"], joined["process"]) == ("127.0.0.1:8482", 3)
    assert jax_distributed.global_state.num_processes == 4


def test_gke_with_two_slices(joined, tpu_vm, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,host-1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    join("--cluster")
    assert (joined["coordinator"], joined["process"]) == ("localhost:8482", 3)
    assert jax_distributed.global_state.num_processes == 4


def test_kubernetes(joined, monkeypatch):
    """An indexed job of three pods, whose description the cluster's server gives."""
    new = types.SimpleNamespace
    owner = new(controller=True, kind="Job")
    pod = new(
        metadata=new(labels={"job-name": "train"}, owner_references=[owner]),
        spec=new(subdomain="pods"),
    )
    job = new(spec=new(parallelism=3), metadata=new(name="train", labels={}))
    core = new(list_namespaced_pod=lambda namespace, field_selector: new(items=[pod]))
    batch = new(read_namespaced_job=lambda name, namespace: job)
    client = new(
        CoreV1Api=lambda: core, BatchV1Api=lambda: batch, exceptions=new(ApiException=OSError)
    )
    package = new(client=client, config=new(load_incluster_config=lambda: None))
    monkeypatch.setitem(sys.modules, "kubernetes", package)
    monkeypatch.setattr(k8s_cluster.K8sCluster, "_namespace", lambda: "default")
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "10.0.0.7")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOSTNAME", "train-2-x")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    join("--cluster")
    assert (joined["coordinator"], joined["process"]) == ("train-0.pods:55527", 2)
    assert jax_distributed.global_state.num_processes == 3
    for name in ("_pod", "_job", "_controller"):  # kept for the life of a process
        getattr(k8s_cluster.K8sCluster, name).cache_clear()


def test_what_is_missing_is_said(joined, monkeypatch):
    with pytest.raises(ValueError, match="no cluster was found: .*or give --coordinator HOST:PORT"):
        join("--cluster")
    with pytest.raises(ValueError, match="--cluster slurm: this process lacks what that needs"):
        join("--cluster", "slurm")
    with pytest.raises(ValueError, match="--cluster pbs: one of slurm, ompi, mpi4py"):
        join("--cluster", "pbs")
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # of salloc or sbatch, without srun
    with pytest.raises(ValueError, match="in a job of SLURM, start it with srun"):
        join("--cluster")
    assert not joined
