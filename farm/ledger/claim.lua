-- Grant a worker the lease of a unit it holds a message for, or not: one grant per attempt, whatever is delivered.
-- ARGV: now, job, index, attempt, worker, lease in seconds, token of this call
-- Returns {header, 'granted'} | {false, why not}
local at, job, index, attempt, worker = now(), ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local member, key = member_of(job, index), job_key(job)
local flying, holder, token = flight_of(member)
if not flying then return { false, 'settled' } end
if flying ~= attempt then return { false, 'stale' } end
local model = redis.call('HGET', key, 'model')
if is_cancelled(job) then
  land(member, model)
  return { false, 'cancelled' }
end
-- The same token again is this very call, repeated because its reply was lost.
if holder ~= '' and token ~= ARGV[7] then return { false, 'held' } end
if holder == '' then
  redis.call('HSET', P .. 'flight', member, attempt .. '|' .. worker .. '|' .. ARGV[7])
  redis.call('ZREM', P .. 'handed:' .. model, member)
  redis.call('SADD', P .. 'held:' .. worker, member)
  redis.call('SADD', P .. 'holders', worker)
  redis.call('HINCRBY', key, 'rendering', 1)
  redis.call('HSETNX', key, 'started_at', string.format('%.3f', at))
end
redis.call('ZADD', P .. 'leases', at + tonumber(ARGV[6]), member)
return { redis.call('HGET', key, 'header'), 'granted' }
