-- What waits, for whom, and who serves it: all that a worker needs to decide which model is next.
--
-- Each model that waits is entitled to a share of the workers: every tenant's weight, divided among the models it waits
-- in. A model's lag is the time of workers that it was entitled to and did not get while it waited, in seconds.
-- ARGV: now, seconds a silent worker counts as alive
-- Returns JSON
local at = now()
drop_silent_servers(at, tonumber(ARGV[2]))

local models, weight_of, models_of = {}, {}, {}
local queued = redis.call('HGETALL', P .. 'queued')
for i = 1, #queued, 2 do
  local model, waiting = queued[i], tonumber(queued[i + 1])
  if waiting <= 0 then
    redis.call('HDEL', P .. 'unserved', model)
    redis.call('HDEL', P .. 'lags', model)
  else
    local entry = { queued = waiting, tenants = {}, weight = 0 }
    for _, priority in ipairs(PRIORITIES) do
      for _, tenant in ipairs(redis.call('SMEMBERS', lane_of(model, priority))) do
        entry.priority = entry.priority or priority
        if not entry.tenants[tenant] then
          entry.tenants[tenant] = true
          weight_of[tenant] = weight_of[tenant] or tonumber(redis.call('HGET', tenant_key(tenant), 'weight') or 1)
          models_of[tenant] = (models_of[tenant] or 0) + 1
        end
      end
    end
    models[model] = entry
  end
end

local total_weight = 0
for _, entry in pairs(models) do
  for tenant in pairs(entry.tenants) do entry.weight = entry.weight + weight_of[tenant] / models_of[tenant] end
  total_weight = total_weight + entry.weight
end

-- Workers that may serve at least one of them.
local workers = 0
local crews = redis.call('HGETALL', P .. 'crews')
for i = 1, #crews, 2 do
  local can_help = false
  each(crews[i], function(model) can_help = can_help or models[model] ~= nil end)
  if can_help then workers = workers + tonumber(crews[i + 1]) end
end

local passed = math.max(0, at - number(redis.call('GET', P .. 'lags_at')))
redis.call('SET', P .. 'lags_at', string.format('%.6f', at))
local out = {}
for model, entry in pairs(models) do
  local share = entry.weight / total_weight
  local served = number(redis.call('HGET', P .. 'served', model)) / PARTS
  local lag = redis.call('HGET', P .. 'lags', model)
  -- The time before a model began to wait is not its to claim.
  lag = lag and tonumber(lag) + (share * workers - served) * passed or 0
  redis.call('HSET', P .. 'lags', model, string.format('%.6f', lag))
  local since
  if served > 0 then
    redis.call('HDEL', P .. 'unserved', model)
  else
    redis.call('HSETNX', P .. 'unserved', model, string.format('%.6f', at))
    since = tonumber(redis.call('HGET', P .. 'unserved', model))
  end
  local images = number(redis.call('HGET', P .. 'images', model))
  out[#out + 1] = {
    model = model, queued = entry.queued, handed = redis.call('ZCARD', P .. 'handed:' .. model), share = share,
    served_by = served, lag_s = lag, top_priority = entry.priority, unserved_since = since or cjson.null,
    image_s = images > 0 and number(redis.call('HGET', P .. 'gpu_ms', model)) / images / 1000 or 1,
  }
end
local answer = { now = at, version = number(redis.call('GET', P .. 'version')), workers = workers }
if #out > 0 then answer.models = out end -- cjson would write an empty table as an object
return cjson.encode(answer)
