-- Take expired leases back, or, with a node given, all leases of the node's earlier processes.
-- ARGV: now, max attempts, limit, node or '', worker to keep
-- Returns {units back in the queue, units failed}
local at, max_attempts, limit = now(), tonumber(ARGV[2]), tonumber(ARGV[3])
local result = { again = 0, failed = 0, cancelled = 0 }

local function take_back(member, reason)
  local model = redis.call('HGET', job_key(split(member)), 'model')
  local outcome = give_back(member, model, reason, max_attempts, at)
  result[outcome] = result[outcome] + 1
end

if ARGV[4] == '' then
  for _, member in ipairs(redis.call('ZRANGE', P .. 'leases', '-inf', at, 'BYSCORE', 'LIMIT', 0, limit)) do
    local _, worker = flight_of(member)
    take_back(member, 'lease of ' .. worker .. ' expired')
  end
else
  local prefix = ARGV[4] .. '#'
  for _, worker in ipairs(redis.call('SMEMBERS', P .. 'holders')) do
    if worker ~= ARGV[5] and string.sub(worker, 1, #prefix) == prefix then
      for _, member in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
        take_back(member, worker .. ' died')
      end
      redis.call('SREM', P .. 'holders', worker)
    end
  end
end
return { result.again, result.failed }
