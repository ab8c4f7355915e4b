-- Hand out the next units of a model: those given back first, then by priority, then tenants in turn, then jobs in
-- the order they came. At most 2 units for each live seat wait unclaimed, so that order, cancel and priority act soon.
-- ARGV: now, model, limit, seconds a silent worker counts as alive, priorities...
-- Returns {job, index, attempt, ...}
local at, model = now(), ARGV[2]
local handed = P .. 'handed:' .. model

local seats = 0
local serving = P .. 'serving:' .. model
redis.call('ZREMRANGEBYSCORE', serving, '-inf', at - tonumber(ARGV[4]))
for _, member in ipairs(redis.call('ZRANGE', serving, 0, -1)) do
  seats = seats + tonumber(string.match(member, '|(%d+)$'))
end
local room = math.min(tonumber(ARGV[3]), 2 * seats - redis.call('ZCARD', handed))

local function next_given_back()
  while true do
    local member = redis.call('LPOP', P .. 'again:' .. model)
    if not member then return nil end
    local job, index = split(member)
    if not is_cancelled(job) then
      redis.call('HINCRBY', job_key(job), 'again', -1)
      return job, index, tries_of(job, index).attempt
    end
  end
end

local function next_fresh()
  for i = 5, #ARGV do
    local lane = P .. 'backlog:' .. model .. ':' .. ARGV[i]
    local tenant = redis.call('LMOVE', lane, lane, 'LEFT', 'RIGHT')
    if tenant then
      local jobs = lane .. ':' .. tenant
      local job = redis.call('LINDEX', jobs, 0)
      local index = redis.call('HINCRBY', job_key(job), 'cursor', 1) - 1
      if index + 1 == tonumber(redis.call('HGET', job_key(job), 'total')) then
        redis.call('LPOP', jobs)
        if redis.call('EXISTS', jobs) == 0 then redis.call('LREM', lane, 1, tenant) end
      end
      return job, index, 1
    end
  end
end

local out = {}
while room > 0 do
  local job, index, attempt = next_given_back()
  if not job then job, index, attempt = next_fresh() end
  if not job then break end
  local member = member_of(job, index)
  redis.call('HSET', P .. 'flight', member, attempt .. '||')
  redis.call('ZADD', handed, at, member)
  redis.call('HINCRBY', P .. 'queued', model, -1)
  out[#out + 1] = job
  out[#out + 1] = tostring(index)
  out[#out + 1] = tostring(attempt)
  room = room - 1
end
return out
