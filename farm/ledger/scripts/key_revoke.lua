-- Let an API key open nothing any more; the first moment counts. Nothing for one that was never made.
-- ARGV: now, key
local key = P .. 'key:' .. ARGV[2]
if redis.call('EXISTS', key) == 0 then return 'unknown' end
return redis.call('HSETNX', key, 'revoked_at', stamp_of(now()))
