-- Let a job be watched for a while. Workers that hold units of it are told, but not by each repetition.
-- ARGV: now, job, every how many steps a picture is wanted, for how long in ms
local job, every, ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local key = watched_key(job)
local known, left = tonumber(redis.call('GET', key) or nil), redis.call('PTTL', key)
if known and known < every then every = known end
redis.call('SET', key, every, 'PX', math.max(ms, left))
local is_news = known ~= every or left < ms / 2
if is_news and number(redis.call('HGET', job_key(job), 'rendering')) > 0 then
  redis.call('PUBLISH', P .. 'watched', job .. ' ' .. every .. ' ' .. math.max(ms, left))
end
