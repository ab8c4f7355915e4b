-- Take expired leases back, or, with a node given, all leases of the node's earlier processes; let units that were told
-- to wait go on; forget workers that are silent.
-- ARGV: now, max attempts, limit, node or '', worker to keep, seconds a silent worker counts as alive,
--       until when leases must have ended, or '' for now
-- Returns {units back in the queue, units failed}
local at, max_attempts, limit = now(), tonumber(ARGV[2]), tonumber(ARGV[3])
local ended = math.min(at, tonumber(ARGV[7]) or at)
local result = { again = 0, failed = 0, cancelled = 0 }

local function take_back(member, reason, death)
  local outcome = give_back(member, at, reason, max_attempts, death, 0)
  result[outcome] = result[outcome] + 1
end

if ARGV[4] == '' then
  for _, member in ipairs(redis.call('ZRANGE', P .. 'leases', '-inf', ended, 'BYSCORE', 'LIMIT', 0, limit)) do
    local _, worker = flight_of(member)
    take_back(member, 'lease of ' .. worker .. ' expired', 'expired')
  end
  for _, member in ipairs(redis.call('ZRANGE', P .. 'later', '-inf', at, 'BYSCORE', 'LIMIT', 0, limit)) do
    redis.call('ZREM', P .. 'later', member)
    local job, index = split(member)
    local facts = facts_of(job)
    if not is_unwanted(job, index, facts) then
      redis.call('RPUSH', job_key(job) .. ':again', index)
      add_waiting(job, facts, 1, true)
      tell_of_work(facts.model)
    end
  end
  drop_silent_servers(ended, tonumber(ARGV[6]))
else
  local prefix = ARGV[4] .. '#'
  for _, worker in ipairs(redis.call('SMEMBERS', P .. 'holders')) do
    if worker ~= ARGV[5] and string.sub(worker, 1, #prefix) == prefix then
      for _, member in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
        take_back(member, worker .. ' died', 'died')
      end
      redis.call('SREM', P .. 'holders', worker)
      drop_server(worker)
    end
  end
end
return { result.again, result.failed }
