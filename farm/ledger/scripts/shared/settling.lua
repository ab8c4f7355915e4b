-- How units and jobs end, and what is left to do then.
--
-- events         'model|what' -> how often since the ledger began: units that failed for good, or were taken back
-- chores:<kind>  what somebody has to do, by when it is due: 'job|event|number'. Written by the script that commits
--                the state it follows from, so that neither is ever without the other.

local function add_chore(kind, job, event, count, due)
  redis.call('ZADD', P .. 'chores:' .. kind, due, job .. '|' .. event .. '|' .. count)
end

-- Visit what else is to be done about a job's end, beside its manifest: the names of chores that it was opened with.
local function each_afterwards(job, visit)
  for kind in string.gmatch(redis.call('HGET', job_key(job), 'afterwards') or '', '[^ ]+') do visit(kind) end
end

-- Tell the job's webhook, if it wants to hear of this.
local function announce(job, event, count, at)
  local wanted = redis.call('HGET', job_key(job), 'webhook')
  if wanted and string.find(' ' .. wanted .. ' ', ' ' .. event .. ' ', 1, true) then
    add_chore('webhook', job, event, count, at)
  end
end

-- Mark a job as settled. A retry of failed images may unsettle it; the count tells one end from the next.
local function settle(job, event, at)
  local key = job_key(job)
  redis.call('HSET', key, 'finished_at', stamp_of(at))
  redis.call('HDEL', key, 'paused_at')
  redis.call('SREM', tenant_key(redis.call('HGET', key, 'tenant')) .. ':jobs', job)
  local count = redis.call('HINCRBY', key, 'settled', 1)
  add_chore('manifest', job, 'settled', count, at)
  each_afterwards(job, function(kind) add_chore(kind, job, 'settled', count, at) end)
  announce(job, event, count, at)
  tell_of_change(job)
end

-- The last image settles its job.
local function settle_if_last(job, at)
  local f = redis.call('HMGET', job_key(job), 'total', 'stored', 'failed', 'dropped', 'finished_at')
  local stored, failed, dropped = number(f[2]), number(f[3]), number(f[4])
  if f[5] or number(f[1]) > stored + failed + dropped then return end
  settle(job, failed > 0 and 'job.failed' or stored > 0 and 'job.done' or 'job.cancelled', at)
end

local function note_event(what, job)
  redis.call('HINCRBY', P .. 'events', redis.call('HGET', job_key(job), 'model') .. '|' .. what, 1)
end

local function fail(job, index, reason, at)
  if redis.call('HSETNX', job_key(job) .. ':failed', index, reason) == 1 then
    redis.call('HINCRBY', job_key(job), 'failed', 1)
    note_end(job, index, FAILED)
    tell_of_change(job)
    note_event('failed', job)
    settle_if_last(job, at)
  end
end

-- What became of a unit's earlier attempts: attempt (its fencing number), strikes, deaths of workers that held it,
-- and a history of reasons.
local function tries_of(job, index)
  local text = redis.call('HGET', job_key(job) .. ':tries', index)
  local tries = text and cjson.decode(text) or { attempt = 1, strikes = 0 }
  tries.deaths, tries.history = tries.deaths or 0, tries.history or {}
  return tries
end

local function keep_tries(job, index, tries)
  if #tries.history == 0 then tries.history = nil end -- cjson would write an empty table as an object
  if tries.deaths == 0 then tries.deaths = nil end
  redis.call('HSET', job_key(job) .. ':tries', index, cjson.encode(tries))
end

-- Take a unit back from its worker. A reason is a strike, and too many strikes fail it; one whose worker died (its
-- lease `expired`, or a successor says `died`) has that on its record. With a delay it goes out again only later.
-- Returns 'again', 'failed' or 'cancelled'.
local function give_back(member, at, reason, max_attempts, death, delay_s)
  local job, index = split(member)
  local facts = facts_of(job)
  if is_unwanted(job, index, facts) then
    land(member, facts)
    return 'cancelled'
  end
  local tries = tries_of(job, index)
  tries.attempt = tries.attempt + 1
  if reason then
    tries.strikes = tries.strikes + 1
    table.insert(tries.history, reason)
  end
  if death then tries.deaths = tries.deaths + 1 end
  keep_tries(job, index, tries)
  note_event('back:' .. (death or reason and 'error' or 'released'), job)
  if reason and tries.strikes >= max_attempts then
    land(member, facts)
    fail(job, index, reason, at)
    return 'failed'
  end
  redis.call('HINCRBY', job_key(job), 'retries', 1)
  tell_of_change(job)
  if delay_s > 0 then
    redis.call('ZADD', P .. 'later', at + delay_s, member)
    land(member, facts)
  else
    bring_back(member, facts)
    tell_of_work(facts.model)
  end
  return 'again'
end
