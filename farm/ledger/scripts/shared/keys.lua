-- Key names, the clock, and what a unit in flight is. Every script begins with the shared files.
-- ARGV[1] of every script is the time in seconds, or '' for the server's own clock: one clock for all machines.

local P = 'farm:'

local function now()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function stamp_of(at) return string.format('%.3f', at) end
local function job_key(job) return P .. 'job:' .. job end
local function tenant_key(tenant) return P .. 'tenant:' .. tenant end
local function watched_key(job) return P .. 'watched:' .. job end
local function previews_key(job) return job_key(job) .. ':previews' end
local function member_of(job, index) return job .. ':' .. index end
local function split(member) return string.match(member, '^(.-):(%d+)$') end
local function number(value) return tonumber(value or 0) or 0 end

-- What the moves below need to know of a job; nil when there is none.
local function facts_of(job)
  local f = redis.call('HMGET', job_key(job), 'model', 'priority', 'tenant', 'paused_at', 'cancelled_at', 'dropped')
  if not f[1] then return nil end
  return { model = f[1], priority = f[2], tenant = f[3], is_paused = f[4], is_cancelled = f[5], has_dropped = number(f[6]) > 0 }
end

-- Whether nobody wants the unit any more: its job is cancelled or gone, or the image was cancelled singly.
local function is_unwanted(job, index, facts)
  if not facts or facts.is_cancelled then return true end
  return facts.has_dropped and redis.call('GETBIT', job_key(job) .. ':dropped', index) == 1
end

-- A unit in flight is 'attempt|worker|token|charge': worker and token are empty until it is claimed, charge is the
-- virtual time that its tenant paid for it in advance.
local function flight_of(member)
  local flight = redis.call('HGET', P .. 'flight', member)
  if not flight then return nil end
  local attempt, worker, token, charge = string.match(flight, '^(%d+)|(.-)|(.-)|(.*)$')
  return tonumber(attempt), worker, token, tonumber(charge)
end

-- Forget that a unit is in flight, wherever it is, handed out or leased, and give its tenant back what it paid.
local function land(member, facts)
  local attempt, worker, _, charge = flight_of(member)
  if not attempt then return end
  local job, index = split(member)
  redis.call('HDEL', P .. 'flight', member)
  if worker == '' then
    redis.call('ZREM', P .. 'handed:' .. facts.model, member)
  else
    redis.call('ZREM', P .. 'leases', member)
    redis.call('SREM', P .. 'held:' .. worker, member)
    redis.call('HINCRBY', job_key(job), 'rendering', -1)
    redis.call('HDEL', previews_key(job), index, index .. ':jpeg')
  end
  redis.call('HINCRBY', tenant_key(facts.tenant), 'in_flight', -1)
  redis.call('HINCRBYFLOAT', tenant_key(facts.tenant), 'vtime', -charge)
end

-- Tell whoever listens that there is work for a model.
local function tell_of_work(model) redis.call('PUBLISH', P .. 'news', 'work ' .. model) end
