-- Units handed out long ago that nobody claimed: their message has vanished, or waits very long. Hint them again: a
-- claim is granted once however many messages say the same.
-- ARGV: now, model, age in seconds, limit
-- Returns {job, index, attempt, priority, ...}
local at, model = now(), ARGV[2]
local handed = P .. 'handed:' .. model
local out = {}
for _, member in ipairs(redis.call('ZRANGE', handed, '-inf', at - tonumber(ARGV[3]), 'BYSCORE', 'LIMIT', 0, ARGV[4])) do
  local job, index = split(member)
  redis.call('ZADD', handed, at, member)
  out[#out + 1] = job
  out[#out + 1] = index
  out[#out + 1] = tostring((flight_of(member)))
  out[#out + 1] = facts_of(job).priority
end
return out
