-- Make a job visible whose entries are staged: its header, its place in the backlog, its idempotency key.
-- ARGV: now, id, header, model, tenant, priority, total, num_entries, idempotency key or '', fingerprint,
--       idempotency expiry in seconds, max queued images or ''
-- Returns {'created', id} | {'replayed', id} | {'conflict', id} | {'full', queued} | {'torn', entries found}
local at = now()
local id, header, model, tenant, priority = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local total, num_entries = tonumber(ARGV[7]), tonumber(ARGV[8])
local key = job_key(id)

-- A repeat of this very call (a lost reply) finds its own work done.
if redis.call('EXISTS', key) == 1 then return { 'created', id } end

local idempotency = ARGV[9] ~= '' and (P .. 'idem:' .. tenant .. ':' .. ARGV[9])
if idempotency then
  local known = redis.call('HMGET', idempotency, 'id', 'fingerprint')
  if known[1] then
    redis.call('UNLINK', key .. ':entries')
    return { known[2] == ARGV[10] and 'replayed' or 'conflict', known[1] }
  end
end

if ARGV[12] ~= '' then
  local queued = 0
  for _, n in ipairs(redis.call('HVALS', P .. 'queued')) do queued = queued + tonumber(n) end
  if queued + total > tonumber(ARGV[12]) then
    redis.call('UNLINK', key .. ':entries')
    return { 'full', tostring(queued) }
  end
end

local staged = redis.call('LLEN', key .. ':entries')
if staged ~= num_entries then
  redis.call('UNLINK', key .. ':entries')
  return { 'torn', tostring(staged) }
end
redis.call('PERSIST', key .. ':entries')
redis.call('HSET', key, 'header', header, 'model', model, 'tenant', tenant, 'priority', priority, 'total', total,
  'cursor', 0, 'again', 0, 'rendering', 0, 'stored', 0, 'failed', 0, 'retries', 0, 'gpu_ms', 0,
  'created_at', string.format('%.3f', at))
redis.call('ZADD', P .. 'jobs', 0, id)
if idempotency then
  redis.call('HSET', idempotency, 'id', id, 'fingerprint', ARGV[10])
  redis.call('EXPIRE', idempotency, ARGV[11])
end
local lane = P .. 'backlog:' .. model .. ':' .. priority
if redis.call('RPUSH', lane .. ':' .. tenant, id) == 1 then redis.call('RPUSH', lane, tenant) end
redis.call('HINCRBY', P .. 'queued', model, total)
return { 'created', id }
