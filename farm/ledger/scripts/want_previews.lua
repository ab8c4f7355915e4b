-- Let a job be watched for a while. Workers that hold units of it are told, but not by each repetition.
-- ARGV: now, job, every how many steps a picture is wanted, for how long in seconds
--
-- watched:<job>  every how many steps, and until when the workers know; expires with the watch
local at, job, every, seconds = now(), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local key = watched_key(job)
local f = redis.call('HMGET', key, 'every', 'known_until')
local known, known_until = tonumber(f[1] or nil), number(f[2])
if known and known < every then every = known end
seconds = math.max(seconds, redis.call('PTTL', key) / 1000)
if known ~= every then known_until = 0 end
if known_until < at + seconds / 2 and number(redis.call('HGET', job_key(job), 'rendering')) > 0 then
  redis.call('PUBLISH', P .. 'watched', job .. ' ' .. every .. ' ' .. math.floor(seconds * 1000))
  known_until = at + seconds
end
redis.call('HSET', key, 'every', every, 'known_until', stamp_of(known_until))
redis.call('PEXPIRE', key, math.floor(seconds * 1000))
