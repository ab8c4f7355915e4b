-- Grant a worker the lease of a unit it holds a message for, or not: one grant per attempt, whatever is delivered.
-- ARGV: now, job, index, attempt, worker, lease in seconds, token of this call, deaths from which a unit is suspect
-- Returns {header, '1' when it is to be rendered alone, else '0'} and, where somebody watches the job, every how many
-- steps and for how many ms yet | {false, why not}
local at, job, index, attempt, worker = now(), ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local member, key = member_of(job, index), job_key(job)
local flying, holder, token, charge = flight_of(member)
if not flying then return { false, 'settled' } end
if flying ~= attempt then return { false, 'stale' } end
-- The same token again is this very call, repeated because its reply was lost.
if holder ~= '' and token ~= ARGV[7] then return { false, 'held' } end
if holder == '' then
  redis.call('HSET', P .. 'flight', member, attempt .. '|' .. worker .. '|' .. ARGV[7] .. '|' .. charge)
  redis.call('ZREM', P .. 'handed:' .. redis.call('HGET', key, 'model'), member)
  redis.call('SADD', P .. 'held:' .. worker, member)
  redis.call('SADD', P .. 'holders', worker)
  redis.call('HINCRBY', key, 'rendering', 1)
  tell_of_change(job)
  if redis.call('HSETNX', key, 'started_at', stamp_of(at)) == 1 then announce(job, 'job.started', 1, at) end
end
redis.call('ZADD', P .. 'leases', at + tonumber(ARGV[6]), member)
local is_suspect = attempt > 1 and tries_of(job, index).deaths >= tonumber(ARGV[8])
local answer = { redis.call('HGET', key, 'header'), is_suspect and '1' or '0' }
local every = redis.call('HGET', watched_key(job), 'every')
if every then
  answer[3], answer[4] = tonumber(every), redis.call('PTTL', watched_key(job))
end
return answer
