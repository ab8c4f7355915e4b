-- Extend all leases of a worker in one call.
-- ARGV: now, worker, lease in seconds, then job, index, attempt of each unit
-- Returns the positions (from 1) of those that are gone.
local at, worker, lease = now(), ARGV[2], tonumber(ARGV[3])
local gone = {}
for i = 4, #ARGV, 3 do
  local job, member = ARGV[i], member_of(ARGV[i], ARGV[i + 1])
  local attempt, holder = flight_of(member)
  if attempt ~= tonumber(ARGV[i + 2]) or holder ~= worker then
    gone[#gone + 1] = (i - 4) / 3 + 1
  elseif is_cancelled(job) then
    land(member, redis.call('HGET', job_key(job), 'model'))
    gone[#gone + 1] = (i - 4) / 3 + 1
  else
    redis.call('ZADD', P .. 'leases', at + lease, member)
  end
end
return gone
