-- Remove a worker that stops in good order.
-- ARGV: now, name
local name = ARGV[2]
redis.call('HDEL', P .. 'workers', name)
redis.call('ZREM', P .. 'seen', name)
redis.call('SREM', P .. 'holders', name)
drop_server(name)
return redis.status_reply('OK')
