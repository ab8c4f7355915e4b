-- Note how far the telling of an event of a job has got. What is forgotten meanwhile stays so.
-- ARGV: now, job, event, text
local key = job_key(ARGV[2])
if redis.call('EXISTS', key) == 1 then redis.call('HSET', key .. ':webhooks', ARGV[3], ARGV[4]) end
return redis.status_reply('OK')
