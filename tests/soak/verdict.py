"""What must be true when a soak has ended, whatever was broken on the way. Each check tells in words what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

from farm.jobs import JobState, UnitState
from farm.storage import NoSuchObject, manifest_key, object_key
from faulty import Farm
from soak.clients import Clients, Receiver
from soak.plan import Plan, events_of

_STAYS = re.compile(
    r"""farm:(
        job:[^:]+(:(entries|stored|times|failed|tries|dropped|webhooks))? | jobs | idem:.+
        | tenant:[^:]+ | tenants | nodes | images | gpu_ms | rate:\d+:\d+ | queued | skipped:\w+
        | workers | seen | version | vclock | lags | lags_at | unserved | seats | served | crews
        | chores:expire | chore_tries
    ) | _kombu\.binding.+""",
    re.VERBOSE,
)
"""Keys that a farm without work and without workers may have; what else there is has been left behind."""


class Verdict:
    """The checks of one soak, and what it went through."""

    def __init__(
        self, farm: Farm, plan: Plan, clients: Clients, receiver: Receiver, undisturbed: dict[str, list[str]]
    ) -> None:
        self._farm = farm
        self._plan = plan
        self._ids = clients.ids
        self._receiver = receiver
        self._undisturbed = undisturbed
        self._statuses = {job.name: farm.ledger.job(self._ids[job.name]) for job in plan.jobs}
        self._images = {job.name: farm.ledger.images(self._ids[job.name], limit=job.units) for job in plan.jobs}

    def wrongs(self) -> list[str]:
        """Return everything that is not as it must be."""
        checks = (self._jobs, self._objects, self._manifests, self._counters, self._keys, self._told)
        return [f"{check.__name__.strip('_')}: {wrong}" for check in checks for wrong in check()]

    def figures(self) -> dict[str, object]:
        """Return what it took, in numbers."""
        attempts = Counter(image.attempts for images in self._images.values() for image in images)
        return {
            "jobs": len(self._statuses),
            "stored": sum(status.counts.stored for status in self._statuses.values()),
            "reused": sum(status.reused for status in self._statuses.values()),
            "cancelled": sum(status.counts.cancelled for status in self._statuses.values()),
            "failed": sum(status.counts.failed for status in self._statuses.values()),
            "retries": sum(status.retries for status in self._statuses.values()),
            "strikes": sum(len(image.history) for images in self._images.values() for image in images),
            "images_by_attempts": {str(count): number for count, number in sorted(attempts.items())},
            "webhooks": {
                "messages": sum(map(len, self._receiver.ids.values())),
                "heard": sum(sum(events.values()) for events in self._receiver.heard.values()),
                "refused_on_purpose": self._receiver.refused,
            },
        }

    # -- the checks

    def _jobs(self):
        """See that every unit is settled as its job's fate says, and counted once."""
        if self._farm.ledger.num_jobs() != len(self._ids):
            yield f"{self._farm.ledger.num_jobs()} jobs, {len(self._ids)} were posted"
        for name, status in self._statuses.items():
            images, counts = self._images[name], status.counts
            ends = {"cancelled": JobState.CANCELLED, "deadly": JobState.FAILED}
            if status.state is not ends.get(name, JobState.DONE):
                errors = [f"{image.index}: {image.error} {image.history}" for image in images if image.error]
                yield f"{name} is {status.state}, {counts}, {errors[:3]}"
            by_state = Counter(image.state for image in images)
            if (counts.stored, counts.failed, counts.cancelled) != tuple(
                by_state[state] for state in (UnitState.STORED, UnitState.FAILED, UnitState.CANCELLED)
            ):
                yield f"{name} counts {counts} of {dict(by_state)}"
            if counts.stored + counts.failed + counts.cancelled != counts.total:
                yield f"{name} does not add up: {counts}"
            wanted = self._plan.cancelled.get(name, frozenset())
            if name != "cancelled" and any(
                image.state is UnitState.CANCELLED and image.index not in wanted for image in images
            ):
                yield f"{name} lost images that nobody cancelled"
            num_attempts = sum(image.attempts for image in images)
            if counts.stored == counts.total and num_attempts != counts.total + status.retries:
                yield f"{name} tells of {status.retries} retries, its images of others"
        failed = [image for image in self._images["deadly"] if image.state is UnitState.FAILED]
        if [len(image.history) for image in failed] != [image.attempts for image in failed] or len(failed) != 1:
            yield f"of the unit that kills, {failed} are told"
        elif failed[0].attempts < self._farm.settings.max_attempts:
            yield f"the unit that kills was given up after {failed[0].attempts} attempts"

    def _objects(self):
        """Find in the store each stored image with the bytes of the undisturbed run, and nothing else."""
        found = set(self._farm.store.list())
        for job in self._plan.jobs:
            job_id = self._ids[job.name]
            expected = self._undisturbed[job.name]
            found.discard(manifest_key(job_id))
            for image in self._images[job.name]:
                key = object_key(job_id, image.index, "png")
                is_there = key in found
                found.discard(key)
                # Of an image that was cancelled while it was on its way the object may be there; then it is the same.
                if image.state is UnitState.STORED and not is_there:
                    yield f"{job.name}: image {image.index} is counted and not there"
                elif image.state is UnitState.FAILED and is_there:
                    yield f"{job.name}: image {image.index} failed and is there"
                elif is_there and _digest(self._farm.store.get(key)) != expected[image.index]:
                    yield f"{job.name}: image {image.index} has other bytes than undisturbed"
        strangers = [key for key in found if not key.startswith("content/")]  # the index of what may be used again
        if strangers:
            yield f"strangers in the store: {sorted(strangers)[:5]}"

    def _manifests(self):
        """See that each job's manifest is there and tells of its last end."""
        for name, images in self._images.items():
            try:
                lines = self._farm.store.get(manifest_key(self._ids[name])).splitlines()
            except NoSuchObject:
                yield f"{name} has none"
                continue
            told = [json.loads(line) for line in lines]
            counts = self._statuses[name].counts
            if told[0]["counts"] != {key: getattr(counts, key) for key in told[0]["counts"]}:
                yield f"{name}: {told[0]['counts']} instead of {counts}"
            if [line["state"] for line in told[1:]] != [image.state for image in images]:
                yield f"{name}: its images are told otherwise"
            if [line["attempts"] for line in told[1:]] != [image.attempts for image in images]:
                yield f"{name}: its attempts are told otherwise"

    def _counters(self):
        """Add the jobs up, by model and by tenant; nobody may have anything in flight."""
        raw = self._farm.raw
        by_model, ms_by_model = Counter(), Counter()
        by_tenant, ms_by_tenant = Counter(), Counter()
        for status in self._statuses.values():
            model, tenant, stored = status.header.model, status.header.tenant, status.counts.stored
            gpu_ms = round(status.gpu_s * 1000)
            by_model[model] += stored
            by_tenant[tenant] += stored
            ms_by_model[model] += gpu_ms
            ms_by_tenant[tenant] += gpu_ms
        for key, expected in (("farm:images", by_model), ("farm:gpu_ms", ms_by_model)):
            counted = {model.decode(): int(number) for model, number in raw.hgetall(key).items()}
            if Counter(counted) != expected:
                yield f"{key} is {counted}, the jobs add up to {dict(expected)}"
        for tenant in self._farm.ledger.tenants():
            if (tenant.queued, tenant.running, tenant.open_jobs) != (0, 0, 0):
                yield f"{tenant} has something waiting or running"
            if tenant.images != by_tenant[tenant.name] or round(tenant.gpu_s * 1000) != ms_by_tenant[tenant.name]:
                yield f"{tenant} has stored {by_tenant[tenant.name]} in {ms_by_tenant[tenant.name]} ms"
            held = raw.hget(f"farm:tenant:{tenant.name}", "held") or 0
            if int(held):
                yield f"{tenant.name} has {held} images in paused jobs"
        for job_id in self._ids.values():
            left = raw.hmget(f"farm:job:{job_id}", "queued", "rendering")
            if any(int(number) for number in left):
                yield f"{job_id} has {left} queued and rendering"

    def _keys(self):
        """See that no lease, lane, hand-out, message or chore is left, and no worker counted that has gone."""
        raw = self._farm.raw
        for key in sorted(key.decode() for key in raw.scan_iter(count=1000)):
            if not _STAYS.fullmatch(key):
                yield f"{key} is left: {_shown(raw, key)}"
        for key in ("farm:queued", "farm:seats", "farm:served", "farm:crews", "farm:unserved"):
            if left := {name: number for name, number in raw.hgetall(key).items() if number != b"0"}:
                yield f"{key} is {left}"
        for key in raw.scan_iter("farm:job:*:entries"):
            if raw.ttl(key) != -1:
                yield f"{key} expires"

    def _told(self):
        """See that each job with a webhook was told of what happened to it, and of nothing else."""
        if self._receiver.forged:
            yield f"{self._receiver.forged} messages had a wrong signature"
        for job in self._plan.jobs:
            heard = set(self._receiver.heard[self._ids[job.name]])
            expected = set(events_of(job)) if job.has_webhook else set()
            if job.name == "cancelled":  # before its first image was begun there is no start to tell of
                heard, expected = heard - {"job.started"}, expected - {"job.started"}
            if heard != expected:
                yield f"{job.name} was told of {sorted(heard)}, not of {sorted(expected)}"


def digests_of(farm: Farm, job_id: str, total: int) -> list[str]:
    """Return the sha256 of each image of a job, in order."""
    return [_digest(farm.store.get(object_key(job_id, index, "png"))) for index in range(total)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(raw, key):
    match raw.type(key):
        case b"hash":
            return raw.hgetall(key)
        case b"zset":
            return raw.zrange(key, 0, 5, withscores=True)
        case b"set":
            return raw.smembers(key)
        case b"list":
            return raw.lrange(key, 0, 5)
        case _:
            return raw.get(key)
