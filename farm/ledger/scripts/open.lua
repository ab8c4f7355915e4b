-- Make a job visible whose entries are staged: its header, its place in the backlog, its idempotency key.
-- ARGV: now, id, header, model, tenant, priority, total, num_entries, webhook events or '', idempotency key or '',
--       fingerprint, idempotency expiry in seconds, max queued images or '', chores that its end brings or ''
-- Returns {'created', id} | {'replayed', id} | {'conflict', id} | {'full', queued} | {'tenant_full', queued, limit}
--       | {'torn', entries found}
local at = now()
local id, header, model, tenant, priority = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local total, num_entries = tonumber(ARGV[7]), tonumber(ARGV[8])
local key = job_key(id)

-- A repeat of this very call (a lost reply) finds its own work done.
if redis.call('EXISTS', key) == 1 then return { 'created', id } end

local function refuse(...)
  redis.call('UNLINK', key .. ':entries')
  return { ... }
end

local idempotency = ARGV[10] ~= '' and (P .. 'idem:' .. tenant .. ':' .. ARGV[10])
if idempotency then
  local known = redis.call('HMGET', idempotency, 'id', 'fingerprint')
  if known[1] and redis.call('EXISTS', job_key(known[1])) == 1 then
    return refuse(known[2] == ARGV[11] and 'replayed' or 'conflict', known[1])
  end
end

if ARGV[13] ~= '' then
  local queued = 0
  for _, n in ipairs(redis.call('HVALS', P .. 'queued')) do queued = queued + tonumber(n) end
  if queued + total > tonumber(ARGV[13]) then return refuse('full', tostring(queued)) end
end
local limits = redis.call('HMGET', tenant_key(tenant), 'max_queued', 'queued', 'held')
local queued = number(limits[2]) + number(limits[3])
if limits[1] and queued + total > tonumber(limits[1]) then return refuse('tenant_full', tostring(queued), limits[1]) end

local staged = redis.call('LLEN', key .. ':entries')
if staged ~= num_entries then return refuse('torn', tostring(staged)) end
redis.call('PERSIST', key .. ':entries')
redis.call('HSET', key, 'header', header, 'model', model, 'tenant', tenant, 'priority', priority, 'total', total,
  'cursor', 0, 'queued', 0, 'rendering', 0, 'stored', 0, 'failed', 0, 'retries', 0, 'gpu_ms', 0,
  'created_at', stamp_of(at))
if ARGV[9] ~= '' then redis.call('HSET', key, 'webhook', ARGV[9]) end
if ARGV[14] ~= '' then redis.call('HSET', key, 'afterwards', ARGV[14]) end
redis.call('ZADD', P .. 'jobs', 0, id)
if idempotency then
  redis.call('HSET', idempotency, 'id', id, 'fingerprint', ARGV[11])
  redis.call('EXPIRE', idempotency, ARGV[12])
end
redis.call('SADD', P .. 'tenants', tenant)
redis.call('SADD', tenant_key(tenant) .. ':jobs', id)
add_waiting(id, facts_of(id), total, false)
tell_of_work(model)
tell_of_change(id)
return { 'created', id }
