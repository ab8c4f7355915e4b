-- Let failed images of a job wait again, with no strike on their record; some hundreds in a call.
-- ARGV: now, job, limit
-- Returns {'unknown'} | {'cancelled'} | {'again', images}
local job, limit = ARGV[2], tonumber(ARGV[3])
local key, facts = job_key(job), facts_of(ARGV[2])
if not facts then return { 'unknown' } end
if facts.is_cancelled then return { 'cancelled' } end
local indices = {}
for _, index in ipairs(redis.call('HRANDFIELD', key .. ':failed', limit)) do indices[#indices + 1] = tonumber(index) end
if #indices == 0 then return { 'again', 0 } end
table.sort(indices)
for _, index in ipairs(indices) do
  redis.call('HDEL', key .. ':failed', index)
  local tries = tries_of(job, index)
  tries.strikes, tries.deaths = 0, 0
  keep_tries(job, index, tries)
  redis.call('RPUSH', key .. ':again', index)
end
redis.call('HINCRBY', key, 'failed', -#indices)
redis.call('HINCRBY', key, 'retries', #indices)
if redis.call('HDEL', key, 'finished_at') == 1 then
  -- It is settled no longer: what was to be done about its end has to wait for the next one.
  local count = redis.call('HGET', key, 'settled')
  redis.call('HDEL', key, 'manifest_at')
  local function forget(kind) redis.call('ZREM', P .. 'chores:' .. kind, job .. '|settled|' .. count) end
  forget('manifest')
  each_afterwards(job, forget)
  redis.call('ZREM', P .. 'chores:expire', job .. '|expire|' .. count)
  redis.call('SADD', tenant_key(facts.tenant) .. ':jobs', job)
end
add_waiting(job, facts, #indices, true)
tell_of_work(facts.model)
tell_of_change(job)
return { 'again', #indices }
