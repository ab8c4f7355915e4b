-- Give an API key another name and limit; nothing for one that was never made.
-- ARGV: now, key, name, requests a minute ('' for as many as there are)
local key = P .. 'key:' .. ARGV[2]
if redis.call('EXISTS', key) == 0 then return 'unknown' end
redis.call('HSET', key, 'name', ARGV[3])
redis.call('HDEL', key, 'tokens', 'tokens_at', 'max_requests_per_minute')
if ARGV[4] ~= '' then redis.call('HSET', key, 'max_requests_per_minute', ARGV[4]) end
return 'edited'
