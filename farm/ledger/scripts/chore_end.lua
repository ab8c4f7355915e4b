-- A chore is done (no delay), or comes again later: because a try has failed, or unless it is done by then.
-- ARGV: now, kind, member, delay in seconds or '', tries that failed: 1 or 0
local key, tries = P .. 'chores:' .. ARGV[2], ARGV[2] .. '|' .. ARGV[3]
if ARGV[4] == '' then
  redis.call('ZREM', key, ARGV[3])
  redis.call('HDEL', P .. 'chore_tries', tries)
elseif redis.call('ZADD', key, 'XX', 'CH', now() + tonumber(ARGV[4]), ARGV[3]) == 1 then
  redis.call('HINCRBY', P .. 'chore_tries', tries, ARGV[5])
end
return redis.status_reply('OK')
