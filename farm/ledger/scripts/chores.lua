-- Take chores that are due: nobody else gets them until the lease ends, or they are done.
-- ARGV: now, limit, lease in seconds, kinds...
-- Returns {kind, member, due, tries, ...}
local at, limit, lease = now(), tonumber(ARGV[2]), tonumber(ARGV[3])
local out = {}
for i = 4, #ARGV do
  local key = P .. 'chores:' .. ARGV[i]
  local due = redis.call('ZRANGE', key, '-inf', at, 'BYSCORE', 'LIMIT', 0, limit, 'WITHSCORES')
  for j = 1, #due, 2 do
    redis.call('ZADD', key, at + lease, due[j])
    out[#out + 1] = ARGV[i]
    out[#out + 1] = due[j]
    out[#out + 1] = due[j + 1]
    out[#out + 1] = tostring(number(redis.call('HGET', P .. 'chore_tries', ARGV[i] .. '|' .. due[j])))
  end
end
return out
