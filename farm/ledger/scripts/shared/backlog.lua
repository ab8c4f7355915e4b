-- The backlog: what waits to be handed out, in fair order.
--
-- lane:<model>:<priority>           set of tenants that have jobs waiting there
-- lane:<model>:<priority>:<tenant>  list of those jobs, in the order they came
-- job:<id>, field queued            images that wait; a job is in its lane's list as long as it is above 0 and not paused
-- job:<id>:again                    images of it that were handed out before; those at `cursor` and beyond never were
-- tenant:<name>                     queued, held (waiting in paused jobs), in_flight, vtime: GPU milliseconds by weight

local PRIORITIES = { 'interactive', 'normal', 'bulk' }

local function lane_of(model, priority) return P .. 'lane:' .. model .. ':' .. priority end

local function enlist(job, facts, at_front)
  local lane = lane_of(facts.model, facts.priority)
  redis.call(at_front and 'LPUSH' or 'RPUSH', lane .. ':' .. facts.tenant, job)
  redis.call('SADD', lane, facts.tenant)
end

local function delist(job, facts)
  local lane = lane_of(facts.model, facts.priority)
  redis.call('LREM', lane .. ':' .. facts.tenant, 1, job)
  if redis.call('EXISTS', lane .. ':' .. facts.tenant) == 0 then redis.call('SREM', lane, facts.tenant) end
end

-- A tenant that comes back from having nothing to do starts at the farm's virtual time: no credit is saved up.
local function wake(tenant)
  local f = redis.call('HMGET', tenant_key(tenant), 'queued', 'in_flight', 'vtime')
  if number(f[1]) + number(f[2]) > 0 then return end
  local clock = number(redis.call('GET', P .. 'vclock'))
  if number(f[3]) < clock then redis.call('HSET', tenant_key(tenant), 'vtime', clock) end
end

-- Let `count` more images of a job wait.
local function add_waiting(job, facts, count, at_front)
  if count == 0 then return end
  local waiting = redis.call('HINCRBY', job_key(job), 'queued', count)
  if facts.is_paused then
    redis.call('HINCRBY', tenant_key(facts.tenant), 'held', count)
    return
  end
  wake(facts.tenant)
  redis.call('HINCRBY', tenant_key(facts.tenant), 'queued', count)
  redis.call('HINCRBY', P .. 'queued', facts.model, count)
  if waiting == count then enlist(job, facts, at_front) end
end

-- Let `count` images of a job wait no longer: they are handed out, or unwanted.
local function remove_waiting(job, facts, count)
  if count == 0 then return end
  local waiting = redis.call('HINCRBY', job_key(job), 'queued', -count)
  if facts.is_paused then
    redis.call('HINCRBY', tenant_key(facts.tenant), 'held', -count)
    return
  end
  redis.call('HINCRBY', tenant_key(facts.tenant), 'queued', -count)
  redis.call('HINCRBY', P .. 'queued', facts.model, -count)
  if waiting == 0 then delist(job, facts) end
end

-- Put a unit in flight back to the front of its job, as if it had not been handed out.
local function bring_back(member, facts)
  local job, index = split(member)
  redis.call('RPUSH', job_key(job) .. ':again', index)
  add_waiting(job, facts, 1, true)
  land(member, facts)
end

-- Take back what was handed out for a model, of one job or of all, and is claimed by nobody. Its messages are worth
-- nothing then: a claim finds no flight. Should the unit go out again, with the same attempt, any of them will do.
local function recall(model, only_job, keep)
  for _, member in ipairs(redis.call('ZRANGE', P .. 'handed:' .. model, 0, -1)) do
    local job, index = split(member)
    if not only_job or job == only_job then
      local facts = facts_of(job)
      if keep and not is_unwanted(job, index, facts) then bring_back(member, facts) else land(member, facts) end
    end
  end
end

-- Milliseconds of GPU time that an image is expected to take: its job's mean, else its model's, else a second.
local function expected_ms(job, model)
  local f = redis.call('HMGET', job_key(job), 'gpu_ms', 'stored')
  if number(f[2]) > 0 then return number(f[1]) / number(f[2]) end
  local images = number(redis.call('HGET', P .. 'images', model))
  return images > 0 and number(redis.call('HGET', P .. 'gpu_ms', model)) / images or 1000
end
