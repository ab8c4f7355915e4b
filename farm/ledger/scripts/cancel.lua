-- Cancel a job at a cost that does not grow with its images: what is pending vanishes, what runs is told.
-- ARGV: now, job
-- Returns 'unknown' | 'settled' | 'cancelled'
local at, job = now(), ARGV[2]
local key, facts = job_key(job), facts_of(ARGV[2])
if not facts then return 'unknown' end
if redis.call('HEXISTS', key, 'finished_at') == 1 then return 'settled' end
remove_waiting(job, facts, number(redis.call('HGET', key, 'queued')))
redis.call('HSET', key, 'cancelled_at', stamp_of(at))
recall(facts.model, job, false)
settle(job, 'job.cancelled', at)
redis.call('PUBLISH', P .. 'news', 'cancelled ' .. job)
return 'cancelled'
