-- A worker changes what it serves, unless somebody else has done so since it looked.
-- ARGV: now, worker, version it looked at, seats, models it may serve (a,b), models it will serve (a,b)
-- Returns 1 when it is so, 0 when it has to look again
local at, worker = now(), ARGV[2]
local record = ARGV[4] .. '|' .. ARGV[5] .. '|' .. ARGV[6]
if redis.call('HGET', P .. 'servers', worker) == record then return 1 end -- also the repeat after a lost reply
if number(redis.call('GET', P .. 'version')) ~= tonumber(ARGV[3]) then return 0 end
set_server(worker, record)
redis.call('ZADD', P .. 'alive', at, worker)
return 1
