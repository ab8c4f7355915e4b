-- Let nothing more of a job start. What waits stays where it is in the job, what was handed out and is claimed by
-- nobody goes back, what runs is finished.
-- ARGV: now, job
-- Returns 'unknown' | 'settled' | 'paused'
local at, job = now(), ARGV[2]
local key, facts = job_key(job), facts_of(ARGV[2])
if not facts then return 'unknown' end
if redis.call('HEXISTS', key, 'finished_at') == 1 then return 'settled' end
if facts.is_paused then return 'paused' end
local waiting = number(redis.call('HGET', key, 'queued'))
remove_waiting(job, facts, waiting)
redis.call('HSET', key, 'paused_at', stamp_of(at))
add_waiting(job, facts_of(job), waiting, false)
recall(facts.model, job, true)
tell_of_change(job)
return 'paused'
