-- Note a worker's heartbeat: that it lives, what it serves and may serve, what it has done since the last one.
-- ARGV: now, name, node, report (JSON), seats, models it may serve (a,b), models it serves (a,b),
--       seconds until a silent worker is forgotten
local at, name, node = now(), ARGV[2], ARGV[3]
local report = cjson.decode(ARGV[4])
local before = redis.call('HGET', P .. 'workers', name)
local last = before and cjson.decode(before) or { steps = 0, seat_steps = 0 }
-- Whole joules, so that their differences add up; none told is null, or missing from an older worker's report.
local function joules(told) return type(told.energy_j) == 'number' and math.floor(told.energy_j) or 0 end
local done = {}
local steps, energy_j = report.steps - last.steps, joules(report) - joules(last)
if steps > 0 then
  done['w|' .. node .. '|steps'] = steps
  done['w|' .. node .. '|seat_steps'] = report.seat_steps - last.seat_steps
end
if energy_j > 0 then done['w|' .. node .. '|energy_j'] = energy_j end
if next(done) then count(at, done) end
redis.call('HSET', P .. 'workers', name, ARGV[4])
redis.call('ZADD', P .. 'seen', at, name)
redis.call('ZADD', P .. 'alive', at, name)
set_server(name, ARGV[5] .. '|' .. ARGV[6] .. '|' .. ARGV[7])
for _, silent in ipairs(redis.call('ZRANGE', P .. 'seen', '-inf', at - tonumber(ARGV[8]), 'BYSCORE')) do
  redis.call('HDEL', P .. 'workers', silent)
  redis.call('ZREM', P .. 'seen', silent)
end
return redis.status_reply('OK')
