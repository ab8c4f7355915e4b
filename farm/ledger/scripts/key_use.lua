-- Count a request of an API key: a token of its bucket, if it has a limit, and when it was used, once a minute at most.
-- Repeated, it counts twice: a request less for whoever lost an answer.
-- ARGV: now, key
-- Returns the seconds until there is a token, as text; '0' when one was taken
local key, at = P .. 'key:' .. ARGV[2], now()
local f = redis.call('HMGET', key, 'name', 'last_used_at', 'max_requests_per_minute', 'tokens', 'tokens_at')
if not f[1] then return '0' end
if number(f[2]) + 60 <= at then redis.call('HSET', key, 'last_used_at', stamp_of(at)) end
local limit = tonumber(f[3] or '')
if not limit then return '0' end
local tokens = limit
if f[4] then tokens = math.min(limit, number(f[4]) + math.max(0, at - number(f[5])) * limit / 60) end
if tokens < 1 then return string.format('%.3f', (1 - tokens) * 60 / limit) end
redis.call('HSET', key, 'tokens', string.format('%.6f', tokens - 1), 'tokens_at', string.format('%.6f', at))
return '0'
