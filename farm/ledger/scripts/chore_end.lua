-- A chore is done (no delay), or has to be tried again later.
-- ARGV: now, kind, member, delay in seconds or ''
local key, tries = P .. 'chores:' .. ARGV[2], ARGV[2] .. '|' .. ARGV[3]
if ARGV[4] == '' then
  redis.call('ZREM', key, ARGV[3])
  redis.call('HDEL', P .. 'chore_tries', tries)
elseif redis.call('ZADD', key, 'XX', 'CH', now() + tonumber(ARGV[4]), ARGV[3]) == 1 then
  redis.call('HINCRBY', P .. 'chore_tries', tries, 1)
end
return redis.status_reply('OK')
