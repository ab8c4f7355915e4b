-- Hand out the next units of a model. At most 2 units for each live seat wait unclaimed, so that order, cancel and
-- priority act soon; interactive ones may be a third, so that they never wait for room.
--
-- The order: the highest priority that waits, but a lower one that was passed over 16 times in a row has its turn;
-- within it the tenant that has had the least GPU time for its weight; of its jobs the first; of that the images given
-- back, then those never handed out. A tenant pays in advance what an image is expected to take.
-- ARGV: now, model, limit, seconds a silent worker counts as alive
-- Returns {job, index, attempt, priority, ...}
local PATIENCE = 16
local at, model = now(), ARGV[2]
local handed = P .. 'handed:' .. model
local skipped_key = P .. 'skipped:' .. model

drop_silent_servers(at, tonumber(ARGV[4]))
local seats = number(redis.call('HGET', P .. 'seats', model))
local room = 2 * seats - redis.call('ZCARD', handed)
if room + seats <= 0 then return {} end

local tenants, lanes = {}, {}
for i, priority in ipairs(PRIORITIES) do
  local names = redis.call('SMEMBERS', lane_of(model, priority))
  for _, name in ipairs(names) do
    if not tenants[name] then
      local f = redis.call('HMGET', tenant_key(name), 'vtime', 'weight', 'in_flight', 'max_running')
      tenants[name] = {
        vtime = number(f[1]), weight = tonumber(f[2] or 1), in_flight = number(f[3]), limit = tonumber(f[4] or nil),
      }
    end
  end
  lanes[i] = { key = lane_of(model, priority), priority = priority, names = names, skipped = 0 }
end
for i, skipped in ipairs(redis.call('HMGET', skipped_key, unpack(PRIORITIES))) do lanes[i].skipped = number(skipped) end

-- The tenant whose turn it is in a lane, nil when all of them are at their limits or have nothing there.
local function next_tenant(lane)
  local best
  for _, name in ipairs(lane.names) do
    local tenant = tenants[name]
    if not lane[name] and not (tenant.limit and tenant.in_flight >= tenant.limit) then
      if not best or tenant.vtime < tenants[best].vtime or (tenant.vtime == tenants[best].vtime and name < best) then
        best = name
      end
    end
  end
  return best
end

-- The lane and the tenant whose turn it is, nil when there is none, or no room for it.
local function next_turn()
  local chosen, name
  for _, lane in ipairs(lanes) do
    lane.candidate = next_tenant(lane)
    if lane.candidate and (not chosen or (lane.skipped >= PATIENCE and chosen.skipped < PATIENCE)) then
      chosen, name = lane, lane.candidate
    end
  end
  if not chosen or (room <= 0 and chosen ~= lanes[1]) then return nil end
  for _, lane in ipairs(lanes) do
    lane.skipped = lane.candidate and lane ~= chosen and lane ~= lanes[1] and lane.skipped + 1 or 0
  end
  return chosen, name
end

-- The next image of the first of a tenant's jobs in a lane.
local function next_unit(jobs)
  local job = redis.call('LINDEX', jobs, 0)
  local facts = facts_of(job)
  local index
  repeat
    index = redis.call('LPOP', job_key(job) .. ':again')
    if not index then
      index = redis.call('HINCRBY', job_key(job), 'cursor', 1) - 1
      -- `queued` says that one is left; should it ever be wrong, an error is better than a server that counts for ever.
      if index >= number(redis.call('HGET', job_key(job), 'total')) then error('miscounted ' .. job) end
    end
  until not is_unwanted(job, index, facts)
  remove_waiting(job, facts, 1)
  return job, tostring(index)
end

local out = {}
while room + seats > 0 and #out < 4 * tonumber(ARGV[3]) do
  local lane, name = next_turn()
  if not lane then break end
  local tenant, jobs = tenants[name], lane.key .. ':' .. name
  local job, index = next_unit(jobs)
  if redis.call('EXISTS', jobs) == 0 then lane[name] = true end -- nothing of this tenant waits here any more
  local attempt = redis.call('HEXISTS', job_key(job) .. ':tries', index) == 1 and tries_of(job, index).attempt or 1
  local charge = expected_ms(job, model) / tenant.weight
  local clock = number(redis.call('GET', P .. 'vclock'))
  if tenant.vtime > clock then redis.call('SET', P .. 'vclock', string.format('%.3f', tenant.vtime)) end
  tenant.vtime, tenant.in_flight = tenant.vtime + charge, tenant.in_flight + 1
  redis.call('HINCRBYFLOAT', tenant_key(name), 'vtime', charge)
  redis.call('HINCRBY', tenant_key(name), 'in_flight', 1)
  local member = member_of(job, index)
  redis.call('HSET', P .. 'flight', member, attempt .. '|||' .. string.format('%.3f', charge))
  redis.call('ZADD', handed, at + #out * 1e-6, member) -- so that what is taken back keeps its order
  out[#out + 1] = job
  out[#out + 1] = index
  out[#out + 1] = tostring(attempt)
  out[#out + 1] = lane.priority
  room = room - 1
end
local skipped = {}
for i, priority in ipairs(PRIORITIES) do
  skipped[#skipped + 1] = priority
  skipped[#skipped + 1] = lanes[i].skipped
end
if #out > 0 then redis.call('HSET', skipped_key, unpack(skipped)) end
return out
