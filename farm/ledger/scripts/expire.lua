-- Forget a job whose manifest lies in the store. Nothing of it may be in flight.
-- ARGV: now, job
-- Returns 1 | 0 when it cannot go, or is gone
local job = ARGV[2]
local key = job_key(job)
local f = redis.call('HMGET', key, 'finished_at', 'manifest_at', 'rendering', 'settled')
if not f[1] or not f[2] or number(f[3]) > 0 then return 0 end
local is_waited_for = false
local function ask(kind)
  is_waited_for = is_waited_for or redis.call('ZSCORE', P .. 'chores:' .. kind, job .. '|settled|' .. f[4])
end
ask('manifest')
each_afterwards(job, ask)
if is_waited_for then return 0 end
for _, part in ipairs({
  '', ':entries', ':stored', ':times', ':failed', ':tries', ':again', ':dropped', ':log', ':webhooks',
}) do
  redis.call('UNLINK', key .. part)
end
redis.call('ZREM', P .. 'jobs', job)
return 1
