-- Extend all leases of a worker in one call.
-- ARGV: now, worker, lease in seconds, then job, index, attempt of each unit
-- Returns the positions (from 1) of those that are gone.
local at, worker, lease = now(), ARGV[2], tonumber(ARGV[3])
local gone = {}
for i = 4, #ARGV, 3 do
  local job, index = ARGV[i], ARGV[i + 1]
  local member = member_of(job, index)
  local attempt, holder = flight_of(member)
  if attempt ~= tonumber(ARGV[i + 2]) or holder ~= worker then
    gone[#gone + 1] = (i - 4) / 3 + 1
  elseif redis.call('HEXISTS', job_key(job), 'cancelled_at') == 1 then
    land(member, facts_of(job))
    gone[#gone + 1] = (i - 4) / 3 + 1
  else
    redis.call('ZADD', P .. 'leases', at + lease, member)
  end
end
return gone
