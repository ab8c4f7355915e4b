-- Note that a settled job's manifest lies in the store; from then on the job may expire.
-- ARGV: now, job, seconds to keep it after its end
-- Returns 1 | 0 when it is not settled (any more)
local key = job_key(ARGV[2])
local f = redis.call('HMGET', key, 'finished_at', 'settled')
if not f[1] then return 0 end
if redis.call('HSETNX', key, 'manifest_at', stamp_of(now())) == 1 then
  add_chore('expire', ARGV[2], 'expire', f[2], tonumber(f[1]) + tonumber(ARGV[3]))
end
return 1
