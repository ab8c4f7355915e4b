"""What the API tells of the farm as a whole: models, workers, throughput, metrics."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_client import WORKER, heartbeat
from farm.ledger import Gpu

GPU = Gpu(uuid="GPU-1", name="RTX 4090", temperature_c=61, power_w=402.5, utilisation=0.98, memory_total_bytes=24 << 30)


def metrics_of(api):
    """Return the metrics' samples as {(name, labels): value}, after checking that each has a help text."""
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples), "a series stands twice"
    return found


def test_models_come_in_openais_shape_with_what_a_client_must_know(api):
    """OpenAI's clients find their four fields; ours tell sizes, defaults, schedulers and who serves the model."""
    api.parts.ledger.report(heartbeat("scenes", resident=("scenes",)))
    answer = api.get("/v1/models").json()
    assert answer["object"] == "list"
    models = {model["id"]: model for model in answer["data"]}
    scenes, sd15 = models["scenes"], models["sd15"]
    assert (scenes["id"], scenes["object"], type(scenes["created"])) == ("scenes", "model", int)
    assert (scenes["width"], scenes["size_multiple"], scenes["defaults"]["scheduler"]) == (128, 8, "dpmpp_2m")
    assert "euler_ancestral" in scenes["schedulers"]
    assert (scenes["available"], scenes["num_workers"], scenes["num_workers_resident"]) == (True, 1, 1)
    assert sd15["available"] is False
    assert scenes["defaults"]["loras"] == {}
    assert models["sd15-lcm"]["defaults"]["loras"] == {"lcm-sd15": 1.0}
    assert api.get("/v1/models/scenes").json() == scenes


def test_loras_are_those_of_the_catalog_and_of_the_folder(make_api, tmp_path):
    """Rows say which models they fit, files do not; of two of one name that of the catalog counts, as for workers."""
    for name in ("ink", "styles/grain", "lcm-sd15"):
        file = tmp_path / "loras" / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    answer = make_api(models_dir=tmp_path).get("/v1/loras").json()
    families = {lora["name"]: lora["family"] for lora in answer["data"]}
    assert list(families) == sorted(families)
    assert {"ink": None, "styles/grain": None, "lcm-sd15": "sd15", "lcm-sdxl": "sdxl"}.items() <= families.items()


def test_workers_are_those_that_are_alive(api):
    """A worker is listed with its times in RFC 3339 and its occupancy, until it says good-bye."""
    api.parts.ledger.report(heartbeat(steps=10, seat_steps=25, gpu=GPU))
    (worker,) = api.get("/v1/workers").json()["data"]
    assert (worker["name"], worker["mean_seat_occupancy"], worker["gpu"]["name"]) == (WORKER, 2.5, "RTX 4090")
    assert worker["started_at"].endswith("Z")
    assert worker["seen_at"].endswith("Z")
    api.parts.ledger.forget(WORKER)
    assert api.get("/v1/workers").json()["data"] == []


def test_workers_tell_how_many_seats_pay(api):
    """What was measured is told by lane, and as one number; a worker that measures nothing has all its seats."""
    caps = {"scenes 128x128 guided fast": 2}
    api.parts.ledger.report(heartbeat(seats=2, caps=caps))
    (worker,) = api.get("/v1/workers").json()["data"]
    assert (worker["max_batch"], worker["seats"], worker["caps"]) == (4, 2, caps)
    assert metrics_of(api)["farm_worker_seats_useful", (("node", "host:gpu0"),)] == 2
    api.parts.ledger.report(heartbeat())
    assert metrics_of(api)["farm_worker_seats_useful", (("node", "host:gpu0"),)] == 4


def test_throughput_is_told_by_window_model_and_worker(api):
    """What was stored shows in all windows, under its model and its worker's node."""
    api.post_job(num_images_per_prompt=6)
    assert api.render(limit=6) == 6
    api.post_job(num_images_per_prompt=5)
    report = api.get("/v1/throughput").json()
    assert set(report["total"]) == {"1m", "5m", "1h"}
    for rates in (report["total"], report["by_model"]["scenes"], report["by_worker"]["host:gpu0"]):
        for window in rates.values():
            assert (window["images"], window["gpu_s_per_image"]) == (6, 0.5)
    assert report["total"]["1m"]["images_per_s"] == pytest.approx(0.1)
    assert (report["queued_images"], report["images_stored"]) == (5, {"scenes": 6})


def test_metrics_tell_the_farms_state(api):
    """Jobs, images, workers and devices stand in Prometheus' text, each series once and with a help text."""
    api.post_job(num_images_per_prompt=6)
    api.render(limit=4)
    cancelled = api.post_job(model="sd15")
    api.delete(cancelled["links"]["self"])
    api.parts.ledger.report(heartbeat(steps=10, seat_steps=25, oom_count=2, running=3, gpu=GPU))
    # The node's earlier process still counts as alive for some seconds: its series must not stand beside.
    api.parts.ledger.report(heartbeat(name="host:gpu0#0", started_at=1.0, steps=999))
    found = metrics_of(api)
    assert found["farm_ledger_up", ()] == 1
    assert found["farm_jobs", ()] == 2
    assert found["farm_recent_jobs", (("state", "rendering"),)] == 1
    assert found["farm_recent_jobs", (("state", "cancelled"),)] == 1
    assert found["farm_images_queued", (("model", "scenes"),)] == 2
    assert found["farm_images_queued", (("model", "sd15"),)] == 0
    assert found["farm_images_stored_total", (("model", "scenes"),)] == 4
    assert found["farm_workers_alive", ()] == 1
    assert found["farm_model_workers", (("model", "scenes"),)] == 1
    assert found["farm_worker_steps_total", (("node", "host:gpu0"),)] == 10
    assert found["farm_worker_out_of_memory_total", (("node", "host:gpu0"),)] == 2
    assert found["farm_worker_seats_taken", (("node", "host:gpu0"),)] == 3
    assert found["farm_gpu_power_watts", (("node", "host:gpu0"),)] == 402.5
    assert found["farm_images_per_second", ()] > 0


def test_metrics_tell_how_long_work_waits_and_what_went_wrong(api):
    """By model and priority; images given up or taken back are counted with their cause, chores by kind."""
    api.post_job(num_images_per_prompt=3, priority="bulk")
    urgent = api.post_job(num_images_per_prompt=2, priority="interactive")
    hints = api.work(limit=1)
    ledger = api.parts.ledger
    assert ledger.failed(hints[0], WORKER, "no such thing", final=True)
    found = metrics_of(api)
    bulk, interactive = ((("model", "scenes"), ("priority", priority)) for priority in ("bulk", "interactive"))
    assert found["farm_images_waiting", bulk] == 3
    assert found["farm_images_waiting", interactive] == 1
    assert 0 < found["farm_oldest_wait_seconds", bulk] < 60
    assert found["farm_oldest_wait_seconds", (("model", "scenes"), ("priority", "normal"))] == 0
    assert found["farm_images_failed_total", (("model", "scenes"),)] == 1
    assert found["farm_images_failed_total", (("model", "sd15"),)] == 0
    assert found["farm_images_taken_back_total", (("cause", "error"), ("model", "scenes"))] == 1
    api.delete(urgent["links"]["self"])
    found = metrics_of(api)
    assert found["farm_chores_due", (("kind", "manifest"),)] == 1
    assert 0 <= found["farm_chores_overdue_seconds", (("kind", "manifest"),)] < 60
    assert found["farm_chores_planned", (("kind", "expire"),)] == 0
    assert found["farm_model_workers", (("model", "scenes"),)] == 1
    assert found["farm_redis_memory_used_bytes", ()] > 0
    assert ("farm_gpu_hour_price", ()) not in found


def test_energy_and_prices_are_told_where_they_are_known(make_api):
    """Joules by the workers that tell theirs; a price per 1,000 images, of a job and of the farm, from the hour's."""
    api = make_api(gpu_hour_price=3.6)
    job = api.post_job(num_images_per_prompt=4)
    assert (job["price"], job["price_per_1000_images"]) == (0, None)
    assert api.render(limit=4) == 4
    api.parts.ledger.report(heartbeat(name="host:cpu0#1", node="host:cpu0", energy_j=None))
    api.parts.ledger.report(heartbeat(energy_j=100.9, gpu=GPU))
    api.parts.ledger.report(heartbeat(energy_j=901.2, gpu=GPU))
    job = api.get(job["links"]["self"]).json()
    assert (job["price"], job["price_per_1000_images"]) == (pytest.approx(0.002), pytest.approx(0.5))
    report = api.get("/v1/throughput").json()
    for rates in (report["total"]["1m"], report["by_worker"]["host:gpu0"]["5m"]):
        assert (rates["joules_per_image"], rates["price_per_1000_images"]) == (
            pytest.approx(225.25),
            pytest.approx(0.5),
        )
    assert report["by_model"]["scenes"]["1m"]["joules_per_image"] is None
    assert report["by_model"]["scenes"]["1m"]["price_per_1000_images"] == pytest.approx(0.5)
    found = metrics_of(api)
    assert found["farm_worker_energy_joules_total", (("node", "host:gpu0"),)] == 901.2
    assert ("farm_worker_energy_joules_total", (("node", "host:cpu0"),)) not in found
    assert found["farm_joules_per_image", ()] == pytest.approx(225.25)
    assert found["farm_gpu_hour_price", ()] == 3.6


def test_requests_are_timed_by_route_template(make_api):
    """Ids and unknown paths never become labels, nor do methods that nobody knows."""
    api = make_api()
    url = api.post_job()["links"]["self"]
    api.get(url)
    api.get("/nothing/like/this")
    api.request("BREW", "/v1/jobs")
    counted = {
        labels: value for (name, labels), value in metrics_of(api).items() if name.endswith("duration_seconds_count")
    }
    assert {dict(labels)["route"] for labels in counted} == {"/v1/jobs", "/v1/jobs/{job_id}", "other"}
    assert {dict(labels)["method"] for labels in counted} == {"GET", "POST", "other"}
