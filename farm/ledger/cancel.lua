-- Cancel a job at a cost that does not grow with its images: what is pending vanishes, what runs is told.
-- ARGV: now, job
-- Returns 'unknown' | 'settled' | 'cancelled'
local at, job = now(), ARGV[2]
local key = job_key(job)
if redis.call('EXISTS', key) == 0 then return 'unknown' end
if redis.call('HEXISTS', key, 'finished_at') == 1 then return 'settled' end
local f = redis.call('HMGET', key, 'model', 'priority', 'tenant', 'total', 'cursor', 'again')
local stamp = string.format('%.3f', at)
redis.call('HSET', key, 'cancelled_at', stamp, 'finished_at', stamp, 'again', 0)
redis.call('HINCRBY', P .. 'queued', f[1], -(tonumber(f[4]) - tonumber(f[5]) + tonumber(f[6])))
local lane = P .. 'backlog:' .. f[1] .. ':' .. f[2]
redis.call('LREM', lane .. ':' .. f[3], 1, job)
if redis.call('EXISTS', lane .. ':' .. f[3]) == 0 then redis.call('LREM', lane, 1, f[3]) end
redis.call('PUBLISH', P .. 'cancelled', job)
return 'cancelled'
