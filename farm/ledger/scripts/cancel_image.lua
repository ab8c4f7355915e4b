-- Cancel one image of a job: if it waits it vanishes, if it runs its worker is told.
-- ARGV: now, job, index
-- Returns 'unknown' | 'settled' | 'cancelled'
local at, job, index = now(), ARGV[2], ARGV[3]
local key, facts = job_key(job), facts_of(ARGV[2])
if not facts or tonumber(index) >= number(redis.call('HGET', key, 'total')) then return 'unknown' end
if is_unwanted(job, index, facts) or redis.call('GETBIT', key .. ':stored', index) == 1
  or redis.call('HEXISTS', key .. ':failed', index) == 1 then
  return 'settled'
end
local member = member_of(job, index)
local attempt, worker = flight_of(member)
if attempt then
  land(member, facts)
  if worker ~= '' then redis.call('PUBLISH', P .. 'news', 'cancelled ' .. job .. ' ' .. index) end
elseif redis.call('ZREM', P .. 'later', member) == 0 then
  remove_waiting(job, facts, 1)
end
redis.call('SETBIT', key .. ':dropped', index, 1)
redis.call('HINCRBY', key, 'dropped', 1)
note_end(job, index, CANCELLED)
tell_of_change(job)
settle_if_last(job, at)
return 'cancelled'
