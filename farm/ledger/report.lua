-- Note a worker's heartbeat: that it lives, which models its seats serve, what it has done since the last one.
-- ARGV: now, name, node, report (JSON), max_batch, seconds until a silent worker is forgotten, models...
local at, name, node = now(), ARGV[2], ARGV[3]
local report = cjson.decode(ARGV[4])
local before = redis.call('HGET', P .. 'workers', name)
local last = before and cjson.decode(before) or { steps = 0, seat_steps = 0 }
local steps, seat_steps = report.steps - last.steps, report.seat_steps - last.seat_steps
if steps > 0 then
  count(at, 'w|' .. node .. '|steps', steps)
  count(at, 'w|' .. node .. '|seat_steps', seat_steps)
end
redis.call('HSET', P .. 'workers', name, ARGV[4])
redis.call('ZADD', P .. 'seen', at, name)
for i = 7, #ARGV do redis.call('ZADD', P .. 'serving:' .. ARGV[i], at, name .. '|' .. ARGV[5]) end
for _, silent in ipairs(redis.call('ZRANGE', P .. 'seen', '-inf', at - tonumber(ARGV[6]), 'BYSCORE')) do
  redis.call('HDEL', P .. 'workers', silent)
  redis.call('ZREM', P .. 'seen', silent)
end
return redis.status_reply('OK')
