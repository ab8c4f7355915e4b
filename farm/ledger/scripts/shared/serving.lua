-- Who serves which model: sums that are kept as workers come, change and go, so that no script walks all workers.
--
-- servers       worker -> 'seats|able,able|serving,serving': what it may serve, and whose queues it reads now
-- alive         workers by their last heartbeat
-- seats         model -> seats of the workers that serve it
-- served        model -> workers that serve it, in parts: one that serves three models counts a third for each
-- crews         'able,able' -> workers that may serve exactly these
-- unserved      model -> since when work for it waits without a worker

local PARTS = 2520 -- of a worker: can be divided by everything up to ten

local function each(list, visit)
  for name in string.gmatch(list, '[^,]+') do visit(name) end
end

local function tally(record, sign)
  local seats, able, serving = string.match(record, '^(%d+)|(.-)|(.*)$')
  local count = 0
  each(serving, function() count = count + 1 end)
  each(serving, function(model)
    redis.call('HINCRBY', P .. 'seats', model, sign * tonumber(seats))
    redis.call('HINCRBY', P .. 'served', model, sign * math.floor(PARTS / count))
  end)
  redis.call('HINCRBY', P .. 'crews', able, sign)
  return serving
end

-- Hand-outs of a model that nobody serves any more wait in the backlog, where order and cancel act.
local function recall_unserved(models)
  each(models, function(model)
    if number(redis.call('HGET', P .. 'seats', model)) <= 0 then
      redis.call('HDEL', P .. 'seats', model)
      redis.call('HDEL', P .. 'served', model)
      recall(model, nil, true)
    end
  end)
end

local function set_server(worker, record)
  local before = redis.call('HGET', P .. 'servers', worker)
  if before == record then return end
  redis.call('HSET', P .. 'servers', worker, record)
  tally(record, 1)
  if before then recall_unserved(tally(before, -1)) end
  redis.call('INCR', P .. 'version')
end

local function drop_server(worker)
  local before = redis.call('HGET', P .. 'servers', worker)
  redis.call('ZREM', P .. 'alive', worker)
  if not before then return end
  redis.call('HDEL', P .. 'servers', worker)
  local serving = tally(before, -1)
  local able = string.match(before, '^%d+|(.-)|')
  if number(redis.call('HGET', P .. 'crews', able)) <= 0 then redis.call('HDEL', P .. 'crews', able) end
  recall_unserved(serving)
  redis.call('INCR', P .. 'version')
end

local function drop_silent_servers(at, alive_s)
  for _, worker in ipairs(redis.call('ZRANGE', P .. 'alive', '-inf', at - alive_s, 'BYSCORE', 'LIMIT', 0, 16)) do
    drop_server(worker)
  end
end
