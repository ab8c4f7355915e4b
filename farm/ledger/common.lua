-- Shared by every script: key names, the clock, and the moves that several transitions make.
-- ARGV[1] of every script is the time in seconds, or '' for the server's own clock: one clock for all machines.

local P = 'farm:'

local function now()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function job_key(job) return P .. 'job:' .. job end
local function member_of(job, index) return job .. ':' .. index end
local function split(member) return string.match(member, '^(.-):(%d+)$') end

-- A unit in flight is 'attempt|worker|token': worker and token are empty until it is claimed.
local function flight_of(member)
  local flight = redis.call('HGET', P .. 'flight', member)
  if not flight then return nil end
  local attempt, worker, token = string.match(flight, '^(%d+)|(.-)|(.-)$')
  return tonumber(attempt), worker, token
end

-- Forget that a unit is in flight, wherever it is: handed out or leased.
local function land(member, model)
  local _, worker = flight_of(member)
  redis.call('HDEL', P .. 'flight', member)
  redis.call('ZREM', P .. 'handed:' .. model, member)
  redis.call('ZREM', P .. 'leases', member)
  if worker and worker ~= '' then
    redis.call('SREM', P .. 'held:' .. worker, member)
    local job = split(member)
    redis.call('HINCRBY', job_key(job), 'rendering', -1)
  end
end

local function is_cancelled(job) return redis.call('HEXISTS', job_key(job), 'cancelled_at') == 1 end

local function tries_of(job, index)
  local text = redis.call('HGET', job_key(job) .. ':tries', index)
  local tries = text and cjson.decode(text) or { attempt = 1, strikes = 0 }
  tries.history = tries.history or {}
  return tries
end

-- The last image settles the job.
local function finish_if_settled(job, at)
  local counts = redis.call('HMGET', job_key(job), 'total', 'stored', 'failed')
  if tonumber(counts[1]) == tonumber(counts[2]) + tonumber(counts[3]) then
    redis.call('HSETNX', job_key(job), 'finished_at', string.format('%.3f', at))
  end
end

local function fail(job, index, reason, at)
  if redis.call('HSETNX', job_key(job) .. ':failed', index, reason) == 1 then
    redis.call('HINCRBY', job_key(job), 'failed', 1)
    finish_if_settled(job, at)
  end
end

-- Take a unit back from its worker: with a reason it is a strike, and too many strikes fail it.
-- Returns 'again', 'failed' or 'cancelled'.
local function give_back(member, model, reason, max_attempts, at)
  local job, index = split(member)
  land(member, model)
  if is_cancelled(job) then return 'cancelled' end
  local tries = tries_of(job, index)
  tries.attempt = tries.attempt + 1
  if reason then
    tries.strikes = tries.strikes + 1
    table.insert(tries.history, reason)
  end
  -- cjson writes an empty table as an object; a unit without history has none of it.
  if #tries.history == 0 then tries.history = nil end
  redis.call('HSET', job_key(job) .. ':tries', index, cjson.encode(tries))
  if reason and tries.strikes >= max_attempts then
    fail(job, index, reason, at)
    return 'failed'
  end
  redis.call('RPUSH', P .. 'again:' .. model, member)
  redis.call('HINCRBY', job_key(job), 'again', 1)
  redis.call('HINCRBY', job_key(job), 'retries', 1)
  redis.call('HINCRBY', P .. 'queued', model, 1)
  return 'again'
end

-- Rates are kept in buckets of 5 s (for ten minutes) and of 60 s (for two hours).
local function count(at, field, amount)
  for _, bucket in ipairs({ { 5, 600 }, { 60, 7200 } }) do
    local key = P .. 'rate:' .. bucket[1] .. ':' .. math.floor(at / bucket[1])
    redis.call('HINCRBY', key, field, amount)
    redis.call('EXPIRE', key, bucket[2])
  end
end
