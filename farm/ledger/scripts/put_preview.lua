-- Keep how far a unit in a seat is, and its latest picture, for whoever watches; tell those who listen.
-- ARGV: now, job, index, attempt, worker, step, steps, seconds until it is worth nothing, picture or ''
-- Returns 'kept' | 'stale'
local at, job, index, picture = now(), ARGV[2], ARGV[3], ARGV[9]
local attempt, holder = flight_of(member_of(job, index))
if attempt ~= tonumber(ARGV[4]) or holder ~= ARGV[5] then return 'stale' end
local key = previews_key(job)
redis.call('HSET', key, index, ARGV[6] .. ' ' .. ARGV[7] .. ' ' .. stamp_of(at))
if picture ~= '' then redis.call('HSET', key, index .. ':jpeg', ARGV[6] .. ' ' .. picture) end
redis.call('EXPIRE', key, ARGV[8])
redis.call('PUBLISH', P .. 'previews',
  job .. ' ' .. index .. ' ' .. ARGV[6] .. ' ' .. ARGV[7] .. ' ' .. (picture ~= '' and '1' or '0'))
return 'kept'
