-- What waits, for whom, and who serves it: all that a worker needs to decide which model is next.
--
-- Each model that waits is entitled to a share of the workers: every tenant's weight, divided among the models it waits
-- in. What is owed is owed to tenants, though, not to models: a model lags as far as that one of its tenants whose turn
-- is next is behind its share of the GPU time, in seconds. A tenant that waits in several models gets its due in any of
-- them, so that nobody has to change models for its sake.
-- ARGV: now, seconds a silent worker counts as alive
-- Returns JSON
local at = now()
drop_silent_servers(at, tonumber(ARGV[2]))

local models, tenants = {}, {}
local queued = redis.call('HGETALL', P .. 'queued')
for i = 1, #queued, 2 do
  local model, waiting = queued[i], tonumber(queued[i + 1])
  local handed = redis.call('ZCARD', P .. 'handed:' .. model)
  if waiting + handed <= 0 then
    redis.call('HDEL', P .. 'unserved', model)
  else
    local entry = { queued = waiting, handed = handed, tenants = {} }
    for _, priority in ipairs(PRIORITIES) do
      for _, tenant in ipairs(redis.call('SMEMBERS', lane_of(model, priority))) do
        entry.priority = entry.priority or priority
        if not tenants[tenant] then
          local f = redis.call('HMGET', tenant_key(tenant), 'weight', 'vtime')
          tenants[tenant] = { weight = tonumber(f[1] or 1), vtime = number(f[2]), models = 0 }
        end
        if not entry.tenants[tenant] then
          entry.tenants[tenant] = true
          tenants[tenant].models = tenants[tenant].models + 1
        end
      end
    end
    models[model] = entry
  end
end

-- The virtual time at which all would be, had each had its share.
local total_weight, mean_vtime = 0, 0
for _, tenant in pairs(tenants) do total_weight = total_weight + tenant.weight end
for _, tenant in pairs(tenants) do mean_vtime = mean_vtime + tenant.vtime * tenant.weight / total_weight end

-- Workers that may serve at least one of them.
local workers = 0
local crews = redis.call('HGETALL', P .. 'crews')
for i = 1, #crews, 2 do
  local can_help = false
  each(crews[i], function(model) can_help = can_help or models[model] ~= nil end)
  if can_help then workers = workers + tonumber(crews[i + 1]) end
end

local out = {}
for model, entry in pairs(models) do
  local served = number(redis.call('HGET', P .. 'served', model)) / PARTS
  local share, lag = 0, nil
  for name in pairs(entry.tenants) do
    local tenant = tenants[name]
    share = share + tenant.weight / tenant.models / total_weight
    lag = math.max(lag or -math.huge, (mean_vtime - tenant.vtime) * tenant.weight / 1000)
  end
  local since
  if served > 0 then
    redis.call('HDEL', P .. 'unserved', model)
  else
    redis.call('HSETNX', P .. 'unserved', model, string.format('%.6f', at))
    since = tonumber(redis.call('HGET', P .. 'unserved', model))
  end
  local images = number(redis.call('HGET', P .. 'images', model))
  out[#out + 1] = {
    model = model, queued = entry.queued, handed = entry.handed, share = share, served_by = served, lag_s = lag or 0,
    top_priority = entry.priority or cjson.null, unserved_since = since or cjson.null,
    image_s = images > 0 and number(redis.call('HGET', P .. 'gpu_ms', model)) / images / 1000 or 1,
  }
end
local answer = { now = at, version = number(redis.call('GET', P .. 'version')), workers = workers }
if #out > 0 then answer.models = out end -- cjson would write an empty table as an object
return cjson.encode(answer)
