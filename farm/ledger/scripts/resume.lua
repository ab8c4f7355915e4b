-- Let a paused job go on, ahead of the younger jobs of its tenant.
-- ARGV: now, job
-- Returns 'unknown' | 'settled' | 'resumed'
local job = ARGV[2]
local key, facts = job_key(job), facts_of(ARGV[2])
if not facts then return 'unknown' end
if redis.call('HEXISTS', key, 'finished_at') == 1 then return 'settled' end
if not facts.is_paused then return 'resumed' end
local waiting = number(redis.call('HGET', key, 'queued'))
remove_waiting(job, facts, waiting)
redis.call('HDEL', key, 'paused_at')
add_waiting(job, facts_of(job), waiting, true)
tell_of_work(facts.model)
tell_of_change(job)
return 'resumed'
